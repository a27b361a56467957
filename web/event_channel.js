// @ts-check
/**
 * The data channel of a call: client events out, server events in, and each refusal back to whoever
 * asked. No DOM.
 */

/** @typedef {{message: string, code: string | null}} Refusal */
/** @typedef {{type: string} & Record<string, unknown>} ClientEvent */

/** Questions whose refusal may still come; of more, the oldest is shown like any error. */
const MAX_OPEN = 64;
/** What every WebRTC peer takes in one message, where it names no limit of its own. */
const SMALLEST_LIMIT_BYTES = 65_536;
/** The server reads no longer event, whatever the connection carries. */
const LARGEST_EVENT_BYTES = 262_144;

export class EventChannel {
  #channel;
  #pc;
  #asked = 0;
  /** @type {Map<string, (refusal: Refusal) => void>} */
  #open = new Map();

  /**
   * @param {RTCPeerConnection} pc
   * @param {(event: any) => void} onEvent
   * @param {() => void} onClose
   */
  constructor(pc, onEvent, onClose) {
    this.#pc = pc;
    this.#channel = pc.createDataChannel('oai-events');
    this.#channel.onmessage = (message) => onEvent(JSON.parse(message.data));
    this.#channel.onclose = onClose;
  }

  get closed() {
    return this.#channel.readyState === 'closed';
  }

  /** The longest event that gets through, as UTF-8. */
  get maxBytes() {
    return Math.min(this.#pc.sctp?.maxMessageSize ?? SMALLEST_LIMIT_BYTES, LARGEST_EVENT_BYTES);
  }

  /**
   * Send a client event; false while there is nobody to hear it.
   * @param {ClientEvent} event
   * @param {(refusal: Refusal) => void} [onRefused] told instead of everybody when the server refuses
   */
  send(event, onRefused) {
    if (this.#channel.readyState !== 'open') return false;
    const eventId = `page_${++this.#asked}`;
    const text = JSON.stringify(onRefused ? { ...event, event_id: eventId } : event);
    const bytes = new TextEncoder().encode(text).length;
    if (bytes > this.maxBytes) {
      onRefused?.({ message: `That is too long to send: ${bytes} of ${this.maxBytes} bytes.`, code: 'message_too_large' });
      return true;
    }
    if (onRefused) this.#remember(eventId, onRefused);
    this.#channel.send(text);
    return true;
  }

  /**
   * Hand an `error` event to whoever asked; false if that was nobody.
   * @param {any} event
   */
  refuse(event) {
    const onRefused = this.#open.get(event.error?.event_id);
    if (!onRefused) return false;
    this.#open.delete(event.error.event_id);
    onRefused({ message: event.error.message ?? 'The server refused it.', code: event.error.code ?? null });
    return true;
  }

  close() {
    this.#channel.close();
  }

  /**
   * @param {string} eventId
   * @param {(refusal: Refusal) => void} onRefused
   */
  #remember(eventId, onRefused) {
    this.#open.set(eventId, onRefused);
    if (this.#open.size > MAX_OPEN) this.#open.delete([...this.#open.keys()][0]);
  }
}

// @ts-check
/**
 * Who said what, and when: a log of lines, oldest first, one line per conversation item. It follows
 * the newest line until the reader scrolls up, and keeps MAX_LINES lines: the oldest go.
 */

export const MAX_LINES = 500;
/** Of one line; what a turn says beyond it is not shown. */
const MAX_CHARACTERS = 20_000;
/** Nearer to the end than this counts as "at the end". */
const END_PX = 32;

/** @typedef {'agent' | 'user'} Speaker */
/** @typedef {{root: HTMLElement, text: HTMLElement, note: HTMLElement}} Line */

/** @type {Record<Speaker, string>} */
const NAMES = { agent: 'Agent', user: 'You' };

export class Captions {
  /** By item id, in order of appearance. @type {Map<string, Line>} */
  #lines = new Map();
  /** When the user began to speak, by item id; one at a time. @type {{itemId: string, atMs: number} | null} */
  #speaking = null;
  #following = true;

  /**
   * @param {HTMLElement} root the scrolling log
   * @param {HTMLElement} newest the button that leads back to the newest line
   */
  constructor(root, newest) {
    this.root = root;
    this.newest = newest;
    root.addEventListener('scroll', () => this.#onScroll());
    newest.addEventListener('click', () => this.follow());
  }

  get length() {
    return this.#lines.size;
  }

  clear() {
    this.#lines.clear();
    this.#speaking = null;
    this.root.replaceChildren();
    this.follow();
  }

  /** Show the newest line and keep doing so. */
  follow() {
    this.#following = true;
    this.newest.hidden = true;
    this.root.scrollTop = this.root.scrollHeight;
  }

  /**
   * Take in a server event; those about other things are ignored.
   * @param {any} event
   * @param {number} atMs since the call began
   */
  apply(event, atMs) {
    switch (event.type) {
      case 'response.output_audio_transcript.delta':
        this.#append('agent', event.item_id, event.delta, atMs);
        break;
      case 'response.output_audio_transcript.done':
        this.#settle('agent', event.item_id, event.transcript, atMs);
        break;
      case 'conversation.item.input_audio_transcription.delta':
        this.#append('user', event.item_id, event.delta ?? '', atMs);
        break;
      case 'conversation.item.input_audio_transcription.completed':
        this.#settle('user', event.item_id, event.transcript, atMs);
        break;
      case 'conversation.item.truncated':
        this.#interrupt(event.item_id, event.audio_end_ms);
        break;
      case 'input_audio_buffer.speech_started':
        this.#speaking = { itemId: event.item_id, atMs };
        break;
      case 'input_audio_buffer.speech_stopped':
        this.#noteUserSpeech(atMs);
        break;
    }
  }

  /**
   * @param {Speaker} speaker
   * @param {string} itemId
   * @param {string} delta
   * @param {number} atMs
   */
  #append(speaker, itemId, delta, atMs) {
    const line = this.#line(speaker, itemId, atMs);
    // Busy: a screen reader waits and reads the line once, whole, instead of word by word.
    this.root.setAttribute('aria-busy', 'true');
    this.#write(line, spokenBefore(line) + delta);
  }

  /**
   * @param {Speaker} speaker
   * @param {string} itemId
   * @param {string} transcript
   * @param {number} atMs
   */
  #settle(speaker, itemId, transcript, atMs) {
    if (transcript) this.#write(this.#line(speaker, itemId, atMs), transcript);
    this.root.setAttribute('aria-busy', 'false');
  }

  /**
   * An engine that cannot transcribe still hears: the log says that the user spoke, and for how long.
   * @param {number} atMs
   */
  #noteUserSpeech(atMs) {
    if (!this.#speaking) return;
    const { itemId, atMs: startedMs } = this.#speaking;
    this.#speaking = null;
    if (this.#lines.has(itemId)) return;
    const line = this.#line('user', itemId, startedMs);
    this.#write(line, `spoke for ${seconds(atMs - startedMs)}`);
    line.root.dataset.placeholder = '';
  }

  /**
   * @param {string} itemId
   * @param {number} heardMs
   */
  #interrupt(itemId, heardMs) {
    const line = this.#lines.get(itemId);
    if (!line) return;
    line.root.dataset.interrupted = '';
    line.note.textContent = `interrupted after ${seconds(heardMs)}`;
    this.root.setAttribute('aria-busy', 'false');
    this.#afterChange();
  }

  /**
   * @param {Line} line
   * @param {string} text
   */
  #write(line, text) {
    delete line.root.dataset.placeholder;
    line.text.textContent = text.slice(0, MAX_CHARACTERS);
    this.#afterChange();
  }

  /**
   * The line of an item, made if it is new.
   * @param {Speaker} speaker
   * @param {string} itemId
   * @param {number} atMs
   */
  #line(speaker, itemId, atMs) {
    const known = this.#lines.get(itemId);
    if (known) return known;
    const line = makeLine(speaker, atMs);
    line.root.dataset.itemId = itemId;
    this.#lines.set(itemId, line);
    this.root.append(line.root);
    this.#dropOldest();
    return line;
  }

  #dropOldest() {
    for (const [itemId, line] of this.#lines) {
      if (this.#lines.size <= MAX_LINES) return;
      line.root.remove();
      this.#lines.delete(itemId);
    }
  }

  #afterChange() {
    if (this.#following) this.follow();
    else this.newest.hidden = false;
  }

  #onScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.root;
    this.#following = scrollHeight - scrollTop - clientHeight < END_PX;
    if (this.#following) this.newest.hidden = true;
  }
}

/** @param {Line} line */
function spokenBefore(line) {
  return 'placeholder' in line.root.dataset ? '' : (line.text.textContent ?? '');
}

/**
 * @param {Speaker} speaker
 * @param {number} atMs
 * @returns {Line}
 */
function makeLine(speaker, atMs) {
  const [root, name, time, text, note] = ['article', 'b', 'time', 'p', 'small'].map((tag) => document.createElement(tag));
  root.className = 'line';
  root.dataset.speaker = speaker;
  name.textContent = NAMES[speaker];
  time.textContent = clock(atMs);
  root.append(name, time, text, note);
  return { root, text, note };
}

/**
 * Minutes and seconds: 1:05.
 * @param {number} ms
 */
export function clock(ms) {
  const s = Math.floor(Math.max(0, ms) / 1000);
  return `${Math.floor(s / 60)}:${String(s % 60).padStart(2, '0')}`;
}

/** @param {number} ms */
function seconds(ms) {
  return `${(Math.max(0, ms) / 1000).toFixed(1)} s`;
}

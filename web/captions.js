// @ts-check
/**
 * Who said what, and when: a log of lines, oldest first, one line per conversation item. It follows
 * the newest line until the reader scrolls up, and keeps MAX_LINES lines: the oldest go.
 *
 * The words of the agent come before their sound. Where it was interrupted, what the user had heard
 * stays as it is, and the beginning of the rest is struck out.
 */

export const MAX_LINES = 500;
/** Of one line; what a turn says beyond it is not shown. */
const MAX_CHARACTERS = 20_000;
/** Of what was said after an interruption, as much as shows how the sentence went on. */
const MAX_UNHEARD_CHARACTERS = 60;
/** Nearer to the end than this counts as "at the end". */
const END_PX = 32;

/** @typedef {'agent' | 'user'} Speaker */
/**
 * `heard` is null until the server has said which of the words that is.
 * @typedef {object} Line
 * @property {HTMLElement} root
 * @property {HTMLElement} text
 * @property {HTMLElement} note
 * @property {string} said
 * @property {string | null} heard
 */

/** @type {Record<Speaker, string>} */
const NAMES = { agent: 'Agent', user: 'You' };

export class Captions {
  /** By item id, in order of appearance. @type {Map<string, Line>} */
  #lines = new Map();
  /** When the user began to speak, by item id; one at a time. @type {{itemId: string, atMs: number} | null} */
  #speaking = null;
  /** Responses out of band, by id: another program in the call asked for them, they are not said. */
  #aside = new Set();
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
    this.#aside.clear();
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
    if (this.#isAside(event)) return;
    switch (event.type) {
      case 'response.output_audio_transcript.delta':
      case 'response.output_text.delta':
        this.#append('agent', event.item_id, event.delta, atMs);
        break;
      case 'response.output_audio_transcript.done':
        this.#settle('agent', event.item_id, event.transcript, atMs);
        break;
      case 'response.output_text.done':
        this.#settle('agent', event.item_id, event.text, atMs);
        break;
      case 'conversation.item.added':
        this.#addTyped(event.item, atMs);
        break;
      case 'conversation.item.deleted':
        this.#remove(event.item_id);
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
      case 'conversation.item.retrieved':
        this.#keepHeard(event.item);
        break;
      case 'input_audio_buffer.speech_started':
        this.#speaking = { itemId: event.item_id, atMs };
        break;
      case 'input_audio_buffer.speech_stopped':
        this.#noteUserSpeech(atMs);
        break;
    }
  }

  /** @param {any} event */
  #isAside(event) {
    const id = event.response?.id ?? event.response_id;
    if (event.type === 'response.created' && event.response?.conversation_id === null) this.#aside.add(id);
    return event.type === 'response.done' ? this.#aside.delete(id) : this.#aside.has(id);
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
    this.#write(line, line.said + delta);
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
   * What the user typed, once the server has taken it.
   * @param {any} item
   * @param {number} atMs
   */
  #addTyped(item, atMs) {
    if (item?.role !== 'user') return;
    const parts = (item.content ?? []).filter((/** @type {any} */ part) => part.type === 'input_text');
    if (!parts.length) return;
    this.#settle('user', item.id, parts.map((/** @type {any} */ part) => part.text).join('\n'), atMs);
  }

  /**
   * The agent does not know of it (any more).
   * @param {string} itemId
   */
  #remove(itemId) {
    this.#lines.get(itemId)?.root.remove();
    this.#lines.delete(itemId);
  }

  /**
   * A picture that the user sent.
   * @param {string} itemId
   * @param {{name: string, url: string}} picture
   * @param {number} atMs
   */
  addPicture(itemId, { name, url }, atMs) {
    const image = new Image();
    image.src = url;
    image.alt = name;
    this.#line('user', itemId, atMs).root.append(image);
    this.#afterChange();
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
    line.text.textContent = `spoke for ${seconds(atMs - startedMs)}`;
    line.root.dataset.placeholder = '';
    this.#afterChange();
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
   * An item as the server holds it, asked for after an interruption: with the words that were heard.
   * @param {any} item
   */
  #keepHeard(item) {
    const line = this.#lines.get(item?.id);
    if (!line || !('interrupted' in line.root.dataset)) return;
    line.heard = (item.content ?? []).map((/** @type {any} */ part) => part.transcript ?? '').join('');
    this.#write(line, line.said);
  }

  /**
   * @param {Line} line
   * @param {string} said
   */
  #write(line, said) {
    delete line.root.dataset.placeholder;
    line.said = said.slice(0, MAX_CHARACTERS);
    const heard = line.heard ?? line.said;
    const unheard = line.said.startsWith(heard) ? line.said.slice(heard.length).trimStart() : '';
    line.text.textContent = unheard ? line.said.slice(0, -unheard.length) : heard;
    if (unheard) line.text.append(struckOut(unheard));
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

/** @param {string} text */
function struckOut(text) {
  const element = document.createElement('s');
  const words = text.slice(0, MAX_UNHEARD_CHARACTERS).replace(/\s+\S*$/, '');
  element.textContent = text.length > MAX_UNHEARD_CHARACTERS ? `${words}…` : text;
  return element;
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
  return { root, text, note, said: '', heard: null };
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

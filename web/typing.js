// @ts-check
/**
 * Words and pictures for the agent in a running call. Each becomes an item of the conversation of its
 * own; when all are in, the agent is asked to answer, at once or when it has finished speaking.
 */

import { Composer } from './composer.js';

/**
 * @typedef {import('./attachments.js').Attachment} Attachment
 * @typedef {import('./event_channel.js').Refusal} Refusal
 * @typedef {import('./signalling.js').Abilities} Abilities
 * @typedef {Pick<import('./call.js').Call, 'send' | 'talking' | 'maxMessageBytes'>} Line
 */

/** What an item has around its picture. */
const ENVELOPE_BYTES = 1_000;
/** Of pictures that wait to be shown in the captions; there are never so many on their way. */
const MAX_SHOWN = 64;

export class Typing {
  #line;
  #composer;
  #showPicture;
  /** Unknown before the server could be asked. @type {Abilities | null} */
  #abilities = null;
  /** Items that are sent and not yet taken. @type {Set<string>} */
  #underWay = new Set();
  /** @type {Map<string, Attachment>} */
  #pictures = new Map();
  /** An answer is still to be asked for. */
  #owed = false;
  #sent = 0;

  /**
   * @param {HTMLFormElement} form
   * @param {HTMLElement} dropZone
   * @param {() => Line} line the running call
   * @param {(itemId: string, picture: Attachment) => void} showPicture once the server has taken it
   */
  constructor(form, dropZone, line, showPicture) {
    this.#line = line;
    this.#showPicture = showPicture;
    this.#composer = new Composer(form, {
      send: (text, attachments) => this.#send(text, attachments),
      maxPictureBytes: () => this.#line().maxMessageBytes - ENVELOPE_BYTES,
      dropZone,
    });
    this.callChanged();
  }

  /** @param {Abilities} abilities */
  useEngine(abilities) {
    this.#abilities = abilities;
    this.#composer.accept(abilities.pictures ? ['picture'] : []);
    this.callChanged();
  }

  /** A call began, or ended. */
  callChanged() {
    const { talking } = this.#line();
    if (!talking) this.#forget();
    if (this.#abilities && !this.#abilities.typed_text) this.#composer.enable('This engine takes no typed text: speak to it.');
    else this.#composer.enable(talking ? '' : 'You can type while a call is on.');
  }

  /**
   * Take in a server event; those about other things are ignored.
   * @param {any} event
   */
  apply(event) {
    if (event.type === 'conversation.item.added') this.#onAdded(event.item?.id);
    else if (event.type === 'response.done' && this.#owed && this.#underWay.size === 0) this.#askForAnswer();
  }

  /**
   * @param {string} text
   * @param {Attachment[]} attachments
   */
  #send(text, attachments) {
    const line = this.#line();
    if (!line.talking) return false;
    for (const picture of attachments) {
      const itemId = this.#create({ type: 'input_image', image_url: picture.url }, '', [picture]);
      if (!itemId) return this.#notSent();
      this.#pictures.set(itemId, picture);
      if (this.#pictures.size > MAX_SHOWN) this.#pictures.delete([...this.#pictures.keys()][0]);
    }
    if (text && !this.#create({ type: 'input_text', text }, text, [])) return this.#notSent();
    return true;
  }

  #notSent() {
    this.#composer.say('The connection is not ready yet: try again in a moment.');
    return false;
  }

  /**
   * @param {Record<string, string>} part of the item's content
   * @param {string} text to be put back if it is refused
   * @param {Attachment[]} attachments likewise
   * @returns {string} the item's id; '' while there is nobody to hear it
   */
  #create(part, text, attachments) {
    const id = `typed_${++this.#sent}_${Math.random().toString(36).slice(2, 10)}`;
    const item = { id, type: 'message', role: 'user', content: [part] };
    this.#underWay.add(id);
    const refused = (/** @type {Refusal} */ refusal) => {
      this.#composer.restore(text, attachments);
      this.#composer.say(`Not sent: ${refusal.message}`);
      this.#settled(id);
    };
    if (this.#line().send({ type: 'conversation.item.create', item }, refused)) return id;
    this.#underWay.delete(id);
    return '';
  }

  /** @param {string} itemId */
  #onAdded(itemId) {
    if (!this.#underWay.has(itemId)) return;
    const picture = this.#pictures.get(itemId);
    if (picture) this.#showPicture(itemId, picture);
    this.#owed = true;
    this.#settled(itemId);
  }

  /** @param {string} itemId */
  #settled(itemId) {
    this.#underWay.delete(itemId);
    this.#pictures.delete(itemId);
    if (this.#owed && this.#underWay.size === 0) this.#askForAnswer();
  }

  #askForAnswer() {
    this.#owed = false;
    this.#line().send({ type: 'response.create' }, (refusal) => {
      if (refusal.code === 'conversation_already_has_active_response') this.#owed = true;
      else this.#composer.say(`No answer: ${refusal.message}`);
    });
  }

  #forget() {
    this.#underWay.clear();
    this.#pictures.clear();
    this.#owed = false;
  }
}

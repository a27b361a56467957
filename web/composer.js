// @ts-check
/**
 * A field to write in, with files: by button, paste or drop. Enter sends, Shift+Enter begins a line.
 *
 *   .composer[data-busy]            while files are read
 *   .composer textarea, .attach, .send, .attachments li[data-kind] > button, .composer-note
 */

import { attach, AttachmentProblem } from './attachments.js';

/**
 * @typedef {import('./attachments.js').Attachment} Attachment
 * @typedef {import('./attachments.js').AttachmentKind} AttachmentKind
 * @typedef {object} Uses
 * @property {(text: string, attachments: Attachment[]) => boolean} send false: nothing was sent, keep it
 * @property {() => number} maxPictureBytes of a picture's data URL
 * @property {HTMLElement} dropZone
 */

const MAX_ATTACHMENTS = 8;
/** @type {Record<AttachmentKind, string>} */
const ACCEPT = { picture: 'image/*', sound: 'audio/*', film: 'video/*' };
/** @type {Record<AttachmentKind, string>} */
const SIGNS = { picture: '', sound: '♪', film: '▶' };

export class Composer {
  #root;
  #uses;
  #field;
  #list;
  #note;
  #attachButton;
  #sendButton;
  #picker;
  /** Why nothing can be sent. */
  #reason = '';
  /** @type {Attachment[]} */
  #attachments = [];
  /** @type {AttachmentKind[]} */
  #kinds = [];

  /**
   * @param {HTMLFormElement} root
   * @param {Uses} uses
   */
  constructor(root, uses) {
    this.#root = root;
    this.#uses = uses;
    this.#field = /** @type {HTMLTextAreaElement} */ (part(root, 'textarea'));
    this.#list = part(root, '.attachments');
    this.#note = part(root, '.composer-note');
    this.#attachButton = /** @type {HTMLButtonElement} */ (part(root, '.attach'));
    this.#sendButton = /** @type {HTMLButtonElement} */ (part(root, '.send'));
    this.#picker = /** @type {HTMLInputElement} */ (part(root, 'input[type=file]'));
    root.addEventListener('submit', (event) => this.#onSubmit(event));
    this.#field.addEventListener('keydown', (event) => this.#onKey(event));
    this.#field.addEventListener('input', () => this.#grow());
    this.#attachButton.addEventListener('click', () => this.#picker.click());
    this.#picker.addEventListener('change', () => this.#onPicked());
    this.#receiveFiles(uses.dropZone);
  }

  get text() {
    return this.#field.value;
  }

  /**
   * What may be attached; nothing hides the button.
   * @param {AttachmentKind[]} kinds
   */
  accept(kinds) {
    this.#kinds = kinds;
    this.#attachButton.hidden = kinds.length === 0;
    this.#picker.accept = kinds.map((kind) => ACCEPT[kind]).join(',');
  }

  /** @param {string} reason why nothing can be sent; '' if it can */
  enable(reason) {
    if (reason === this.#reason) return;
    this.#reason = reason;
    for (const each of [this.#field, this.#attachButton, this.#sendButton]) each.disabled = reason !== '';
    this.say(reason, 'plain');
  }

  /**
   * @param {string} text
   * @param {'plain' | 'bad'} [tone]
   */
  say(text, tone = 'bad') {
    this.#note.dataset.tone = tone;
    if (this.#note.textContent !== text) this.#note.textContent = text;
  }

  /**
   * Put back what could not be sent, before what was written meanwhile.
   * @param {string} text
   * @param {Attachment[]} attachments
   */
  restore(text, attachments) {
    if (text) this.#field.value = [text, this.#field.value].filter(Boolean).join('\n');
    this.#attachments = [...attachments, ...this.#attachments].slice(0, MAX_ATTACHMENTS);
    this.#showAttachments();
    this.#grow();
  }

  clear() {
    this.#field.value = '';
    this.#attachments = [];
    this.#showAttachments();
    this.#grow();
    this.say('');
  }

  focus() {
    this.#field.focus();
  }

  /** @param {Event} event */
  #onSubmit(event) {
    event.preventDefault();
    const text = this.#field.value.trim();
    if (this.#root.dataset.busy || (!text && this.#attachments.length === 0)) return;
    const attachments = this.#attachments;
    // Emptied first: what is refused at once is put back by then.
    this.clear();
    if (!this.#uses.send(text, attachments)) this.restore(text, attachments);
    this.focus();
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    // While an input method is choosing characters, Enter is its own.
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.#root.requestSubmit();
  }

  #onPicked() {
    void this.#add([...(this.#picker.files ?? [])]);
    this.#picker.value = '';
  }

  /** @param {HTMLElement} zone */
  #receiveFiles(zone) {
    this.#field.addEventListener('paste', (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (files.length) event.preventDefault();
      void this.#add(files);
    });
    zone.addEventListener('dragover', (event) => {
      if (!event.dataTransfer?.types.includes('Files')) return;
      event.preventDefault();
      zone.dataset.drop = 'here';
    });
    for (const end of ['dragleave', 'drop']) zone.addEventListener(end, () => delete zone.dataset.drop);
    zone.addEventListener('drop', (event) => {
      if (!event.dataTransfer?.files.length) return;
      event.preventDefault();
      void this.#add([...event.dataTransfer.files]);
    });
  }

  /** @param {File[]} files */
  async #add(files) {
    if (!files.length) return;
    if (this.#reason) return;
    this.say('Reading…', 'plain');
    this.#root.dataset.busy = 'yes';
    for (const file of files) await this.#addOne(file);
    delete this.#root.dataset.busy;
    if (this.#note.dataset.tone === 'plain') this.say(this.#reason, 'plain');
    this.#showAttachments();
  }

  /** @param {File} file */
  async #addOne(file) {
    if (!this.#kinds.length) return this.say('Nothing can be attached here.');
    if (this.#attachments.length >= MAX_ATTACHMENTS) return this.say(`At most ${MAX_ATTACHMENTS} files at a time.`);
    try {
      this.#attachments.push(await attach(file, this.#kinds, this.#uses.maxPictureBytes()));
    } catch (error) {
      if (!(error instanceof AttachmentProblem)) throw error;
      this.say(error.message);
    }
  }

  #showAttachments() {
    this.#list.replaceChildren(...this.#attachments.map((each) => this.#item(each)));
    this.#list.hidden = this.#attachments.length === 0;
  }

  /** @param {Attachment} attachment */
  #item(attachment) {
    const item = document.createElement('li');
    item.dataset.kind = attachment.kind;
    const remove = document.createElement('button');
    remove.type = 'button';
    remove.textContent = '×';
    remove.setAttribute('aria-label', `Remove ${attachment.name}`);
    remove.addEventListener('click', () => {
      this.#attachments = this.#attachments.filter((each) => each !== attachment);
      this.#showAttachments();
      this.focus();
    });
    item.append(thumbnail(attachment), remove);
    return item;
  }

  #grow() {
    this.#field.style.height = 'auto';
    this.#field.style.height = `${this.#field.scrollHeight + 2}px`;
  }
}

/**
 * A small picture of it, or its name.
 * @param {Attachment} attachment
 */
export function thumbnail({ kind, name, url }) {
  if (kind === 'picture') {
    const image = new Image();
    image.src = url;
    image.alt = name;
    return image;
  }
  const label = document.createElement('span');
  label.textContent = `${SIGNS[kind]} ${name}`;
  label.title = name;
  return label;
}

/**
 * @param {HTMLElement} root
 * @param {string} selector
 * @returns {HTMLElement}
 */
function part(root, selector) {
  const found = root.querySelector(selector);
  if (!(found instanceof HTMLElement)) throw new Error(`a composer has no ${selector}`);
  return found;
}

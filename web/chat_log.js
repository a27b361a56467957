// @ts-check
/**
 * The messages of a chat on the screen.
 *
 *   .message[data-role = user | agent][data-state = '' | writing | stopped | problem]
 *   .message .prose, .reasoning (a <details>, closed), .message-files, .message-problem, .copy, .again
 */

import { thumbnail } from './composer.js';
import { showProse } from './prose.js';

/** @typedef {import('./attachments.js').Attachment} Attachment */

/** Nearer to the end than this counts as "at the end". */
const END_PX = 48;
const COPIED_MS = 1_500;

export class ChatLog {
  #root;
  #following = true;

  /** @param {HTMLElement} root the scrolling log */
  constructor(root) {
    this.#root = root;
    root.addEventListener('scroll', () => {
      this.#following = root.scrollHeight - root.scrollTop - root.clientHeight < END_PX;
    });
  }

  clear() {
    this.#root.replaceChildren();
    this.#root.setAttribute('aria-busy', 'false');
  }

  /** @param {boolean} busy an answer is being written: a screen reader waits until it is whole */
  busy(busy) {
    this.#root.setAttribute('aria-busy', String(busy));
  }

  /**
   * @param {string} text
   * @param {Attachment[]} attachments
   */
  addQuestion(text, attachments) {
    const message = makeMessage('user', 'You');
    if (attachments.length) message.append(files(attachments));
    showProse(append(message, 'div', 'prose'), text);
    this.#root.append(message);
    this.#following = true;
    this.#follow();
    return message;
  }

  addAnswer() {
    const answer = new AnswerOnScreen(() => this.#follow());
    this.#root.append(answer.root);
    this.#follow();
    return answer;
  }

  #follow() {
    if (this.#following) this.#root.scrollTop = this.#root.scrollHeight;
  }
}

export class AnswerOnScreen {
  root = makeMessage('agent', 'Agent');
  #reasoning = makeReasoning();
  #prose = element('div', 'prose');
  #waiting = element('p', 'waiting');
  #changed;

  /** @param {() => void} changed */
  constructor(changed) {
    this.#changed = changed;
    this.root.dataset.state = 'writing';
    this.#waiting.textContent = 'Reading…';
    this.root.append(this.#reasoning, this.#prose, this.#waiting);
  }

  /**
   * @param {string} reasoning so far
   * @param {string} text so far
   */
  write(reasoning, text) {
    this.#reasoning.hidden = !reasoning;
    const body = /** @type {HTMLElement} */ (this.#reasoning.lastElementChild);
    if (body.textContent !== reasoning) body.textContent = reasoning;
    showProse(this.#prose, text);
    this.#waiting.textContent = reasoning && !text ? 'Thinking…' : '';
    this.#changed();
  }

  /**
   * @param {'' | 'stopped' | 'problem'} state
   * @param {string} note said beneath; '' for nothing
   */
  settle(state, note) {
    this.root.dataset.state = state;
    this.#waiting.remove();
    if (note) append(this.root, 'p', state === 'problem' ? 'message-problem' : 'message-note').textContent = note;
    this.#changed();
  }

  /**
   * @param {string} label
   * @param {string} className
   * @param {(button: HTMLButtonElement) => unknown} press
   */
  offer(label, className, press) {
    const button = /** @type {HTMLButtonElement} */ (append(this.root, 'button', `text-button ${className}`));
    button.type = 'button';
    button.textContent = label;
    button.addEventListener('click', () => press(button));
    this.#changed();
    return button;
  }

  remove() {
    this.root.remove();
  }
}

/**
 * @param {HTMLButtonElement} button says for a moment that it worked
 * @param {string} text
 */
export async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = 'Copied';
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
    button.textContent = 'Not allowed here';
  }
  setTimeout(() => (button.textContent = 'Copy'), COPIED_MS);
}

/**
 * @param {'user' | 'agent'} role
 * @param {string} name
 */
function makeMessage(role, name) {
  const message = element('article', 'message');
  message.dataset.role = role;
  append(message, 'b', '').textContent = name;
  return message;
}

function makeReasoning() {
  const details = element('details', 'reasoning');
  append(details, 'summary', '').textContent = 'Reasoning';
  append(details, 'p', '');
  details.hidden = true;
  return details;
}

/** @param {Attachment[]} attachments */
function files(attachments) {
  const list = element('ul', 'message-files');
  for (const each of attachments) append(list, 'li', '').append(thumbnail(each));
  return list;
}

/**
 * @param {HTMLElement} parent
 * @param {string} tag
 * @param {string} className
 */
function append(parent, tag, className) {
  const child = element(tag, className);
  parent.append(child);
  return child;
}

/**
 * @param {string} tag
 * @param {string} className
 */
function element(tag, className) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  return made;
}

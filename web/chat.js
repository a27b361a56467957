// @ts-check
/**
 * The turn-based conversation: words, pictures, recordings and films to the model, and its answers.
 * It lives in this page alone; each question goes out with all that was said before.
 */

import { megabytes } from './attachments.js';
import { ChatLog, copy } from './chat_log.js';
import { ChatProblem, streamAnswer } from './chat_stream.js';
import { Composer } from './composer.js';
import { recall, remember } from './devices.js';
import { ReadAloud } from './read_aloud.js';
import { byId } from './stage.js';

/**
 * @typedef {import('./attachments.js').Attachment} Attachment
 * @typedef {import('./attachments.js').AttachmentKind} AttachmentKind
 * @typedef {import('./chat_log.js').AnswerOnScreen} AnswerOnScreen
 * @typedef {import('./settings.js').Choices} Choices
 * @typedef {{role: 'user' | 'assistant', text: string, attachments: Attachment[]}} Message
 */

/** A picture's data URL; a conversation holds many of them. */
const MAX_PICTURE_BYTES = 1_200_000;
/** As the server takes them, in one conversation. @type {Record<AttachmentKind, number>} */
const MOST = { picture: 32, sound: 16, film: 4 };
const PLURALS = { picture: 'pictures', sound: 'recordings', film: 'films' };
/** Of the whole request; the server reads 64 MiB. */
const MAX_CHARACTERS = 60 * 1024 * 1024;
const MAX_MESSAGES = 200;

export class Chat {
  #url;
  #key;
  #choices;
  #aloud;
  #log = new ChatLog(byId('chat-log'));
  #composer;
  #thinking = /** @type {HTMLInputElement} */ (byId('thinking'));
  #stop = byId('chat-stop');
  #new = byId('chat-new');
  /** @type {Message[]} */
  #messages = [];
  /** Of the answer that is being written. @type {AbortController | null} */
  #writing = null;
  #model = '';
  /** Why there can be no chat now. */
  #blocked = '';

  /**
   * @param {URL} url
   * @param {Choices} choices
   * @param {import('./page_key.js').PageKey} key
   */
  constructor(url, choices, key) {
    this.#url = url;
    this.#key = key;
    this.#choices = choices;
    this.#aloud = new ReadAloud(choices);
    this.#composer = new Composer(/** @type {HTMLFormElement} */ (byId('chat-form')), {
      send: (text, attachments) => this.#ask(text, attachments),
      maxPictureBytes: () => MAX_PICTURE_BYTES,
      dropZone: byId('chat-panel'),
    });
    this.#composer.accept(['picture', 'sound', 'film']);
    this.#stop.addEventListener('click', () => this.#giveUp());
    this.#new.addEventListener('click', () => this.#begin());
    this.#thinking.checked = recall('thinking') === 'on';
    this.#thinking.addEventListener('change', () => remember('thinking', this.#thinking.checked ? 'on' : 'off'));
  }

  /** @param {import('./signalling.js').EngineInfo} engine */
  useEngine({ id, abilities }) {
    this.#model = id;
    this.#aloud.offer(abilities.text_to_speech === true);
    this.#show();
  }

  /** @param {string} reason why there can be no chat just now; '' if there can */
  block(reason) {
    if (reason) this.#giveUp();
    this.#blocked = reason;
    this.#show();
  }

  /** Nothing is read aloud any more; the answer is still written. */
  hush() {
    this.#aloud.stop();
  }

  /** Nothing more of the answer, neither written nor read. */
  #giveUp() {
    this.#writing?.abort();
    this.#aloud.stop();
  }

  #begin() {
    this.#giveUp();
    this.#messages = [];
    this.#log.clear();
    this.#composer.clear();
    this.#show();
    this.#composer.focus();
  }

  /**
   * @param {string} text
   * @param {Attachment[]} attachments
   */
  #ask(text, attachments) {
    if (this.#writing || this.#blocked) return false;
    const messages = [...this.#messages, { role: /** @type {const} */ ('user'), text, attachments }];
    const tooMuch = excess(messages);
    if (tooMuch) this.#composer.say(tooMuch);
    if (tooMuch) return false;
    this.#messages = messages;
    this.#log.addQuestion(text, attachments);
    void this.#answer();
    return true;
  }

  /** Have the newest question answered. */
  async #answer() {
    const onScreen = this.#log.addAnswer();
    const writing = (this.#writing = new AbortController());
    const message = { role: /** @type {const} */ ('assistant'), text: '', attachments: [] };
    const quiet = onScreen.offer('Stop reading', 'quiet', () => this.#aloud.stop());
    this.#aloud.begin(() => (quiet.hidden = true));
    quiet.hidden = true;
    this.#show();
    try {
      this.#settle(message, onScreen, '', noteOf(await this.#write(message, onScreen, writing.signal)));
      quiet.hidden = !this.#aloud.playing;
      this.#aloud.finish();
    } catch (error) {
      if (writing.signal.aborted) this.#settle(message, onScreen, 'stopped', 'Stopped.');
      else if (error instanceof ChatProblem) this.#fail(onScreen, error);
      else throw error;
      this.#aloud.stop();
    } finally {
      if (this.#writing === writing) this.#writing = null;
      this.#show();
    }
  }

  /**
   * @param {Message} message grows
   * @param {AnswerOnScreen} onScreen
   * @param {AbortSignal} signal
   */
  async #write(message, onScreen, signal) {
    const answer = streamAnswer(this.#url, this.#request(), signal, this.#key);
    let reasoning = '';
    for (;;) {
      const { done, value } = await answer.next();
      if (done) return value;
      if (value.reasoning) reasoning += value.text;
      else message.text += value.text;
      if (value.sound) this.#aloud.push(value.sound);
      onScreen.write(reasoning, message.text);
    }
  }

  /**
   * @param {Message} message
   * @param {AnswerOnScreen} onScreen
   * @param {'' | 'stopped'} state
   * @param {string} note
   */
  #settle(message, onScreen, state, note) {
    onScreen.settle(state, note);
    // After "New chat" there is nothing that it would belong to.
    if (!onScreen.root.isConnected) return;
    // A question without an answer cannot be followed by another one: the model takes turns.
    if (!message.text) return this.#offerAgain(onScreen);
    this.#messages = [...this.#messages, message];
    onScreen.offer('Copy', 'copy', (button) => copy(button, message.text));
  }

  /**
   * @param {AnswerOnScreen} onScreen
   * @param {ChatProblem} problem
   */
  #fail(onScreen, problem) {
    onScreen.settle('problem', `${problem.message} ${problem.advice}`);
    this.#offerAgain(onScreen);
  }

  /** @param {AnswerOnScreen} onScreen that came to nothing */
  #offerAgain(onScreen) {
    onScreen.offer('Send again', 'again', () => {
      if (this.#writing || this.#blocked) return;
      onScreen.remove();
      void this.#answer();
    });
    onScreen.offer('Change it', 'change', () => {
      const [question, asked] = [this.#messages.at(-1), onScreen.root.previousElementSibling];
      if (this.#writing || question?.role !== 'user') return;
      this.#messages = this.#messages.slice(0, -1);
      onScreen.remove();
      asked?.remove();
      this.#composer.restore(question.text, question.attachments);
      this.#composer.focus();
      this.#show();
    });
  }

  #request() {
    const instructions = this.#choices.value('instructions').trim();
    const system = instructions ? [{ role: 'system', content: instructions }] : [];
    const thinking = this.#thinking.checked;
    return {
      model: this.#model,
      stream: true,
      enable_thinking: thinking,
      // Said either way: the server's own choice is neither.
      max_slices: this.#choices.value('max_slices'),
      ...this.#aloud.request(),
      messages: [...system, ...this.#messages.map(asMessage)],
    };
  }

  #show() {
    const answering = this.#writing !== null;
    const unanswered = !answering && this.#messages.at(-1)?.role === 'user';
    const owed = unanswered ? 'The last message has no answer yet: send it again, or change it.' : '';
    this.#composer.enable(this.#blocked || owed);
    byId('chat-form').dataset.answering = answering ? 'yes' : '';
    this.#stop.hidden = !answering;
    this.#new.hidden = this.#messages.length === 0;
    this.#log.busy(answering);
  }
}

/** @param {import('./chat_stream.js').End} end */
function noteOf({ reason, voiced }) {
  const cut = reason === 'length' ? 'The answer was cut here: it grew too long.' : '';
  return [cut, voiced ? '' : 'The voice failed on the way: the rest is only written.'].filter(Boolean).join(' ');
}

/** @param {Message} message */
function asMessage({ role, text, attachments }) {
  if (!attachments.length) return { role, content: text };
  const parts = attachments.map(asPart);
  return { role, content: text ? [...parts, { type: 'text', text }] : parts };
}

/** @param {Attachment} attachment */
function asPart({ kind, url }) {
  if (kind === 'picture') return { type: 'image_url', image_url: { url } };
  if (kind === 'sound') return { type: 'audio_url', audio_url: { url } };
  return { type: 'video_url', video_url: { url } };
}

/**
 * What is too much for one conversation, and what to do; '' if nothing is.
 * @param {Message[]} messages
 */
function excess(messages) {
  const all = messages.flatMap((message) => message.attachments);
  for (const [kind, most] of /** @type {[AttachmentKind, number][]} */ (Object.entries(MOST))) {
    if (all.filter((each) => each.kind === kind).length > most) {
      return `A chat holds at most ${most} ${PLURALS[kind]}: remove some, or start a new chat.`;
    }
  }
  const characters = [...all.map((each) => each.url), ...messages.map((each) => each.text)].reduce((sum, each) => sum + each.length, 0);
  if (characters > MAX_CHARACTERS) {
    return `All files together may have ${megabytes(MAX_CHARACTERS)}: remove some, or start a new chat.`;
  }
  return messages.length > MAX_MESSAGES ? 'This chat is full: start a new one.' : '';
}

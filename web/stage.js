// @ts-check
/** The middle of the page: orb, state, call controls, and the card that tells of a problem. */

import { clock } from './captions.js';
import { canShareScreen } from './capture.js';
import { canRetry, describe } from './problems.js';

/** @typedef {import('./call.js').State} State */
/** @typedef {import('./pictures.js').PictureSource} PictureSource */
/** @typedef {import('./problems.js').CallProblem} CallProblem */

/** @type {Record<State, string>} */
const STATE_TEXT = {
  idle: 'Ready when you are',
  connecting: 'Connecting…',
  listening: 'Listening',
  speaking: 'Agent is speaking',
  paused: 'Paused',
  ended: 'Call ended',
  problem: 'No call',
};

/** Of an agent without a voice, which is seen and not heard. */
const WRITING_TEXT = 'Agent is writing';

/** While the connection is broken, whoever had the word. */
const RECONNECTING_TEXT = 'Reconnecting…';

/** Instead of "Listening": nothing is heard. */
const MUTED_TEXT = 'Muted';

const LISTENS_ONLY_TEXT = 'Only listening';
const ENDED_BY_SERVER_TEXT = 'The server ended the call';

/** A screen reader need not hear the meter more often than this. */
const METER_MS = 250;

/** The element with this id; the page is broken without it. */
export const byId = (/** @type {string} */ id) => {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found;
};

/**
 * The first element that matches; the page is broken without it.
 * @param {string} selector
 * @param {ParentNode} [root]
 * @returns {HTMLElement}
 */
function one(selector, root = document) {
  const found = root.querySelector(selector);
  if (!(found instanceof HTMLElement)) throw new Error(`the page has no ${selector}`);
  return found;
}

export class Stage {
  #root = one('.stage');
  #state = byId('state');
  #said = one('#state .said');
  #hint = byId('hint');
  #orb = byId('orb');
  #meter = byId('mic-meter');
  #callButton = byId('call-button');
  #mute = byId('mute');
  #camera = byId('camera');
  #screen = byId('screen');
  #meterAtMs = 0;
  #headline = '';

  /**
   * @param {State} state
   * @param {number} lastedMs of the call so far
   * @param {boolean} writing the agent answers without a sound
   * @param {boolean} endedByServer and not by the user
   */
  show(state, lastedMs, writing, endedByServer) {
    const talking = ['listening', 'speaking', 'paused'].includes(state);
    const live = talking || state === 'connecting';
    this.#root.dataset.state = this.#state.dataset.state = state;
    this.#headline = headline(state, writing, endedByServer);
    this.#showHeadline();
    this.#callButton.dataset.live = String(live);
    label(this.#callButton, callLabel(state, live));
    for (const control of [this.#mute, this.#camera, this.#meter]) control.hidden = !talking;
    this.#screen.hidden = !talking || !canShareScreen();
    if (!talking) {
      this.userSpeaking(false);
      this.reconnecting(false);
    }
    this.ducked(false);
    this.hint(hintFor(state, lastedMs));
  }

  /** @param {string} text */
  hint(text) {
    if (this.#hint.textContent !== text) this.#hint.textContent = text;
  }

  /** @param {boolean} speaking */
  userSpeaking(speaking) {
    this.#root.dataset.user = speaking ? 'speaking' : '';
  }

  /**
   * The agent holds its breath, because the user may want the word. Seen, not announced: it often
   * lasts for less than a word.
   * @param {boolean} ducked
   */
  ducked(ducked) {
    this.#root.dataset.ducked = ducked ? 'on' : '';
  }

  /**
   * The connection broke, and is being waited for: nobody knows who has the word.
   * @param {boolean} broken
   */
  reconnecting(broken) {
    this.#root.dataset.link = broken ? 'broken' : '';
    if (broken) {
      this.userSpeaking(false);
      this.ducked(false);
    }
    this.#showHeadline();
  }

  /**
   * The agent was told to listen, and nothing else.
   * @param {boolean} only
   */
  listensOnly(only) {
    this.#root.dataset.listen = only ? 'only' : '';
    this.#showHeadline();
  }

  #showHeadline() {
    const text = this.#exception() || this.#headline;
    if (text && this.#said.textContent !== text) this.#said.textContent = text;
  }

  /** What is more important than the state by itself; '' for nothing. */
  #exception() {
    const { link, listen, muted, state } = this.#root.dataset;
    if (link === 'broken') return RECONNECTING_TEXT;
    if (muted === 'on' && state === 'listening') return MUTED_TEXT;
    return listen === 'only' && state === 'listening' ? LISTENS_ONLY_TEXT : '';
  }

  /** @param {boolean} muted */
  muted(muted) {
    this.#mute.setAttribute('aria-pressed', String(muted));
    label(this.#mute, muted ? 'Muted' : 'Mute');
    this.#root.dataset.muted = muted ? 'on' : '';
    this.#showHeadline();
  }

  /** @param {PictureSource | null} source what is shown */
  picture(source) {
    this.#camera.setAttribute('aria-pressed', String(source === 'camera'));
    this.#screen.setAttribute('aria-pressed', String(source === 'screen'));
    label(this.#camera, source === 'camera' ? 'Camera on' : 'Camera');
    label(this.#screen, source === 'screen' ? 'Sharing' : 'Share screen');
    this.#root.dataset.picture = source ?? '';
  }

  /**
   * Once a picture of the screen.
   * @param {number} microphone 0 to 1
   * @param {number} agent 0 to 1
   * @param {number} nowMs
   */
  levels(microphone, agent, nowMs) {
    this.#orb.style.setProperty('--user', microphone.toFixed(3));
    this.#orb.style.setProperty('--agent', agent.toFixed(3));
    this.#meter.style.setProperty('--level', microphone.toFixed(3));
    if (nowMs - this.#meterAtMs < METER_MS) return;
    this.#meterAtMs = nowMs;
    this.#meter.setAttribute('aria-valuenow', String(Math.round(100 * microphone)));
  }
}

/** The card that says what went wrong; its button waits where the server asked for a pause. */
export class ProblemCard {
  #card = one('.problem-card');
  #alert = byId('problem');
  #action = byId('problem-action');
  #ticking = 0;
  #retry = false;
  #shown = /** @type {CallProblem | null} */ (null);

  /** @param {() => void} callAgain */
  constructor(callAgain) {
    this.#action.addEventListener('click', () => {
      this.hide();
      if (this.#retry) callAgain();
    });
  }

  /**
   * @param {CallProblem} problem
   * @param {boolean} callGoesOn
   */
  show(problem, callGoesOn) {
    const { title, advice, action } = describe(problem, callGoesOn);
    this.#shown = problem;
    this.#retry = canRetry(problem) && !callGoesOn;
    this.#card.hidden = false;
    this.#alert.dataset.problem = problem.code;
    this.#alert.replaceChildren(paragraph('strong', title), paragraph('p', advice));
    this.#countDown(action, problem.retryAfterS);
  }

  /** An error that the call did not survive no longer says that the call goes on. */
  callEnded() {
    if (this.#shown?.code === 'server-error') this.show(this.#shown, false);
  }

  hide() {
    clearInterval(this.#ticking);
    this.#shown = null;
    this.#card.hidden = true;
    this.#alert.dataset.problem = '';
    this.#alert.replaceChildren();
  }

  /**
   * @param {string} action
   * @param {number} waitS
   */
  #countDown(action, waitS) {
    clearInterval(this.#ticking);
    let leftS = waitS;
    const show = () => {
      this.#action.textContent = leftS > 0 ? `${action} (in ${leftS} s)` : action;
      this.#action.toggleAttribute('disabled', leftS > 0);
      if (leftS <= 0) clearInterval(this.#ticking);
      leftS -= 1;
    };
    this.#ticking = setInterval(show, 1000);
    show();
  }
}

/**
 * @param {State} state
 * @param {boolean} writing
 * @param {boolean} endedByServer
 */
function headline(state, writing, endedByServer) {
  if (state === 'speaking' && writing) return WRITING_TEXT;
  return state === 'ended' && endedByServer ? ENDED_BY_SERVER_TEXT : STATE_TEXT[state];
}

/**
 * @param {State} state
 * @param {boolean} live
 */
function callLabel(state, live) {
  if (state === 'connecting') return 'Cancel';
  if (live) return 'Hang up';
  return state === 'idle' ? 'Start call' : 'Call again';
}

/**
 * @param {State} state
 * @param {number} lastedMs
 */
function hintFor(state, lastedMs) {
  if (state === 'idle') return 'Your browser will ask for the microphone.';
  if (state === 'connecting') return 'Allow the microphone if your browser asks.';
  if (state === 'problem') return '';
  return state === 'ended' ? `It lasted ${clock(lastedMs)}.` : clock(lastedMs);
}

/**
 * @param {HTMLElement} button
 * @param {string} text
 */
function label(button, text) {
  const place = button.querySelector('.label');
  if (place && place.textContent !== text) place.textContent = text;
}

/**
 * @param {string} tag
 * @param {string} text
 */
function paragraph(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

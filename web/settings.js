// @ts-check
/**
 * What the user chose for calls and chats, what is in force in the running call, and what the engine
 * can do of it. Choices are kept in this browser; what was not chosen is left to the server. No DOM.
 */

import { recall, remember } from './devices.js';

/**
 * @typedef {object} Settings
 * @property {string} instructions the system prompt; '' is the engine's own
 * @property {string} language '' is the browser's, where the engine speaks it
 * @property {number} eagerness 0 waits, 1 jumps in
 * @property {string} mode duplex | half_duplex
 * @property {number} max_slices 1, or 9 for HD
 * @property {number} pictures_per_unit 1 or 2 a second
 * @property {string} voice its id; '' is the first there is
 */
/** @typedef {keyof Settings} Name */
/** @typedef {import('./signalling.js').Abilities} Abilities */
/** @typedef {import('./voices.js').Voice} Voice */

export const MAX_INSTRUCTIONS = 20_000;
export const HD_SLICES = 9;

/** What holds where neither user nor server said anything. @type {Settings} */
export const BUILT_IN = { instructions: '', language: '', eagerness: 0.5, mode: 'duplex', max_slices: 1, pictures_per_unit: 1, voice: '' };

/** @type {Record<Name, (value: any) => boolean>} */
const VALID = {
  instructions: (value) => typeof value === 'string' && value.length <= MAX_INSTRUCTIONS,
  language: (value) => typeof value === 'string' && value.length <= 64,
  eagerness: (value) => typeof value === 'number' && value >= 0 && value <= 1,
  mode: (value) => value === 'duplex' || value === 'half_duplex',
  max_slices: (value) => value === 1 || value === HD_SLICES,
  pictures_per_unit: (value) => value === 1 || value === 2,
  voice: (value) => typeof value === 'string' && value.length <= 128,
};

export const NAMES = /** @type {Name[]} */ (Object.keys(BUILT_IN));

export class Choices {
  /** @type {Partial<Settings>} */
  #chosen = recallChoices();
  /** The session object of the running call. @type {any} */
  #inForce = null;
  /** @type {Abilities} */
  abilities = {};
  /** All that there are, those built in first. @type {Voice[]} */
  voices = [];
  /** The agent has spoken in the running call, and keeps its voice. */
  voiceLocked = false;

  /**
   * What a control shows: what was chosen, else what holds.
   * @template {Name} N
   * @param {N} name
   * @returns {Settings[N]}
   */
  value(name) {
    const chosen = this.#chosen[name];
    // "Like this browser" stays that, whatever language comes of it.
    if (chosen !== undefined || name === 'language') return chosen ?? BUILT_IN[name];
    return this.#held(name) ?? BUILT_IN[name];
  }

  /** The language that is meant, or '' where the server decides. */
  get language() {
    const { languages = [] } = this.abilities;
    const chosen = this.#chosen.language || navigator.language.split('-')[0];
    return languages.includes(chosen) ? chosen : '';
  }

  /** The voice that is meant: the chosen one, while it cannot be had the first; '' where there is none. */
  get voice() {
    const ready = this.voices.filter((voice) => voice.status === 'ready').map((voice) => voice.id);
    const chosen = this.#chosen.voice;
    return chosen && ready.includes(chosen) ? chosen : (ready[0] ?? '');
  }

  /**
   * Whether a change can be told to the running call: a voice only while the agent has not spoken,
   * and none that cannot be had.
   * @param {Name} name
   */
  canTell(name) {
    if (name !== 'voice') return true;
    return !this.voiceLocked && this.voice !== '' && (this.#chosen.voice || this.voice) === this.voice;
  }

  /** What the user chose; '' for nothing. */
  get chosenVoice() {
    return this.#chosen.voice ?? '';
  }

  /** The voice of the running call, '' where there is none. */
  get voiceInForce() {
    return this.#held('voice') ?? '';
  }

  /** Whether anything was chosen. */
  get any() {
    return Object.keys(this.#chosen).length > 0;
  }

  /**
   * @template {Name} N
   * @param {N} name
   * @param {Settings[N]} value
   */
  choose(name, value) {
    if (!VALID[name](value)) throw new RangeError(`${name} cannot be ${value}`);
    this.#chosen[name] = value;
    this.#keep();
  }

  /**
   * Leave it to the server again, or go back to what is in force.
   * @param {Name} name
   */
  forget(name) {
    delete this.#chosen[name];
    this.#keep();
  }

  /**
   * The settings of a call that begins: only what was chosen, and only what the engine can do.
   * @returns {Record<string, unknown> | undefined} undefined: nothing to say
   */
  opening() {
    const names = NAMES.filter((name) => this.#isMeant(name));
    if (this.language && !names.includes('language')) names.push('language');
    return names.length ? this.asSession(names) : undefined;
  }

  /**
   * These settings in the shape of the protocol.
   * @param {Name[]} names
   * @returns {Record<string, unknown>}
   */
  asSession(names) {
    /** @type {Record<string, unknown>} */
    const extension = {};
    for (const name of names) {
      const value = name === 'language' ? this.language || this.abilities.languages?.[0] : this.value(name);
      if (name !== 'instructions' && name !== 'voice' && value !== undefined) extension[name] = value;
    }
    return {
      ...(names.includes('voice') && this.voice ? { audio: { output: { voice: this.voice } } } : {}),
      ...(names.includes('instructions') ? { instructions: this.value('instructions') } : {}),
      ...(Object.keys(extension).length ? { voice_agent: extension } : {}),
    };
  }

  /** @param {any} session as the server told it; null: there is no call any more */
  holds(session) {
    this.#inForce = session;
    if (!session) this.voiceLocked = false;
  }

  /**
   * What differs in the running call from what was chosen: to be sent.
   * @returns {Name[]}
   */
  unmet() {
    if (!this.#inForce) return [];
    return NAMES.filter((name) => this.#isMeant(name) && this.#differs(name));
  }

  /**
   * Whether it was chosen, and can be had of this engine.
   * @param {Name} name
   */
  #isMeant(name) {
    return name in this.#chosen && canFollow(name, this.abilities) && this.canTell(name);
  }

  /** @param {Name} name */
  #differs(name) {
    if (name === 'language') return this.language !== '' && this.language !== this.#held('language');
    return (name === 'voice' ? this.voice : this.#chosen[name]) !== this.#held(name);
  }

  /**
   * @template {Name} N
   * @param {N} name
   * @returns {Settings[N] | undefined} undefined outside of a call, and for a value without a control
   */
  #held(name) {
    const value = heldIn(this.#inForce, name);
    return VALID[name](value) ? value : undefined;
  }

  #keep() {
    remember('settings', JSON.stringify(this.#chosen));
  }
}

/**
 * @param {any} session
 * @param {Name} name
 */
function heldIn(session, name) {
  if (name === 'instructions') return session?.instructions;
  if (name !== 'voice') return session?.voice_agent?.[name];
  const voice = session?.audio?.output?.voice;
  return voice?.id ?? voice;
}

/**
 * Whether the engine can follow a setting.
 * @param {Name} name
 * @param {Abilities} abilities
 */
export function canFollow(name, abilities) {
  const { understands = false } = abilities;
  if (name === 'pictures_per_unit') return seesPictures(abilities);
  if (name === 'max_slices') return understands && seesPictures(abilities);
  if (name === 'language') return Boolean(abilities.languages?.length);
  if (name === 'voice') return hasVoices(abilities);
  return name === 'mode' ? understands && abilities.duplex === true : understands;
}

/** @param {Abilities} abilities */
function seesPictures(abilities) {
  return Boolean(abilities.camera || abilities.pictures);
}

/**
 * Whether there may be a choice of voices.
 * @param {Abilities} abilities
 */
export function hasVoices(abilities) {
  return Boolean(abilities.voices?.length || abilities.text_to_speech);
}

/** @returns {Partial<Settings>} what is still valid of what was chosen before */
function recallChoices() {
  try {
    const kept = JSON.parse(recall('settings') ?? '{}') ?? {};
    return Object.fromEntries(NAMES.filter((name) => name in kept && VALID[name](kept[name])).map((name) => [name, kept[name]]));
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof TypeError) return {};
    throw error;
  }
}

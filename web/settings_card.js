// @ts-check
/**
 * The card of settings. A change holds from the next call on, or at once in a running one: then it is
 * sent, and its control says what became of it. A refused one goes back to what is in force, also
 * where the server held it to be in force until its engine refused it.
 *
 *   #settings           <details>, remembered open or closed
 *   #setting-NAME       the control of each setting (settings.js), in [data-field=NAME]
 *   [data-ack]          beside it: '' | waiting | ok | refused | later
 */

import { recall, remember } from './devices.js';
import { languageName } from './languages.js';
import { BUILT_IN, canFollow, hasVoices, HD_SLICES, MAX_INSTRUCTIONS, NAMES } from './settings.js';
import { byId } from './stage.js';

/** @typedef {import('./settings.js').Choices} Choices */
/** @typedef {import('./settings.js').Name} Name */
/** @typedef {import('./signalling.js').Abilities} Abilities */
/** @typedef {import('./event_channel.js').Refusal} Refusal */
/** @typedef {HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement} Control */

const SUMMARY_CHARACTERS = 40;
/** Up to which eagerness which words hold. @type {[number, string][]} */
const EAGERNESS = [
  [0.15, 'Waits until you have surely finished'],
  [0.4, 'Takes its time'],
  [0.6, 'Balanced'],
  [0.85, 'Answers quickly'],
  [1, 'Jumps in early'],
];

export class SettingsCard {
  #choices;
  #send;
  #voiceRefused;
  /** Updates on their way, oldest first. @type {Name[][]} */
  #asked = [];
  /** The newest update that asked for it. @type {Map<Name, Name[]>} */
  #newest = new Map();
  /** Updates that were in force and are taken back: the server tells so next. */
  #takenBack = 0;
  /** @type {Record<string, string>} */
  #prompts = {};

  /**
   * @param {Choices} choices
   * @param {(event: {type: string, session: object}, onRefused: (refusal: Refusal) => void) => boolean} send
   *   false where no call is on
   * @param {(id: string) => void} voiceRefused perhaps it is gone
   */
  constructor(choices, send, voiceRefused) {
    this.#choices = choices;
    this.#voiceRefused = voiceRefused;
    this.#send = send;
    for (const name of NAMES) control(name).addEventListener('change', () => this.#onChange(name));
    control('eagerness').addEventListener('input', () => this.#describeEagerness());
    control('instructions').addEventListener('input', () => this.#count());
    byId('settings-reset').addEventListener('click', () => this.#reset());
    rememberOpen(/** @type {HTMLDetailsElement} */ (byId('settings')));
    this.#show();
  }

  /** @param {import('./signalling.js').EngineInfo} engine */
  useEngine(engine) {
    this.#choices.abilities = engine.abilities;
    this.#prompts = engine.prompts;
    fillLanguages(/** @type {HTMLSelectElement} */ (control('language')), engine.abilities.languages ?? []);
    // What means nothing to the engine is not shown.
    for (const name of NAMES) field(name).hidden = !this.#canFollow(name);
    byId('settings').hidden = !NAMES.some((name) => this.#canFollow(name));
    byId('prompt-note').hidden = !this.#canFollow('instructions');
    this.#show();
  }

  /**
   * Choose as if its control had been used.
   * @template {Name} N
   * @param {N} name
   * @param {import('./settings.js').Settings[N]} value
   */
  choose(name, value) {
    this.#choices.choose(name, value);
    this.#update([name]);
    this.#show();
  }

  /** The list of voices changed: one that was waited for holds at once. */
  voicesChanged() {
    this.#update(this.#choices.unmet().filter((name) => name === 'voice' && !this.#isAsked(name)));
    this.#show();
  }

  /**
   * Take in a server event; those about other things are ignored.
   * @param {any} event
   */
  apply(event) {
    if (event.type === 'output_audio_buffer.started') this.#choices.voiceLocked = true;
    if (event.type !== 'session.created' && event.type !== 'session.updated') return;
    this.#choices.holds(event.session);
    if (event.type === 'session.updated') this.#onUpdated();
    else this.#update(this.#choices.unmet());
    this.#show();
  }

  /** The call is over, or another one begins. */
  callEnded() {
    this.#choices.holds(null);
    this.#asked = [];
    this.#takenBack = 0;
    for (const name of NAMES) acknowledge(name, '');
    this.#show();
  }

  /** @param {Name} name */
  #onChange(name) {
    this.choose(name, read(name));
  }

  #reset() {
    for (const name of NAMES) this.#choices.choose(name, BUILT_IN[name]);
    this.#update(NAMES.filter((name) => this.#canFollow(name)));
    for (const name of NAMES) this.#choices.forget(name);
    this.#show();
  }

  /** @param {Name[]} names */
  #update(names) {
    if (names.includes('voice')) this.#updateVoice();
    this.#ask(names.filter((name) => name !== 'voice'));
  }

  /** On its own, so that its refusal is not that of other settings. */
  #updateVoice() {
    const { voiceLocked, voiceInForce } = this.#choices;
    const [chosen, later] = [this.#choices.value('voice'), 'From the next call on'];
    if (this.#choices.canTell('voice')) this.#ask(['voice']);
    else if (voiceLocked && chosen && chosen !== voiceInForce) acknowledge('voice', 'later', later);
    else acknowledge('voice', '');
  }

  /** @param {Name[]} names */
  #ask(names) {
    if (!names.length) return;
    const session = { type: 'realtime', ...this.#choices.asSession(names) };
    const asked = [...names];
    // A refusal may come at once: what is too long is not even sent.
    this.#asked.push(asked);
    for (const name of names) this.#newest.set(name, asked);
    const sent = this.#send({ type: 'session.update', session }, (refused) => this.#onRefused(asked, refused));
    if (!sent) this.#asked.pop();
    if (!this.#asked.includes(asked)) return;
    for (const name of names) acknowledge(name, 'waiting', 'Being changed…');
  }

  /** The oldest update that is on its way is now in force: answers come in the order of questions. */
  #onUpdated() {
    if (this.#takenBack) {
      this.#takenBack -= 1;
      return;
    }
    for (const name of this.#asked.shift() ?? []) acknowledge(name, 'ok', 'In force');
  }

  /**
   * @param {Name[]} asked
   * @param {Refusal} refused
   */
  #onRefused(asked, refused) {
    if (!this.#asked.includes(asked)) this.#takenBack += 1;
    this.#asked = this.#asked.filter((each) => each !== asked);
    for (const name of asked) {
      // Another choice since then is another question.
      if (this.#newest.get(name) !== asked) continue;
      if (refused.code === 'cannot_update_voice') {
        this.#choices.voiceLocked = true;
        this.#updateVoice();
        continue;
      }
      if (name === 'voice') this.#voiceRefused(this.#choices.chosenVoice);
      this.#choices.forget(name);
      acknowledge(name, 'refused', `Not changed: ${refused.message}`);
    }
    this.#show();
  }

  /** @param {Name} name */
  #isAsked(name) {
    return this.#asked.some((names) => names.includes(name));
  }

  /** @param {Name} name */
  #canFollow(name) {
    return canFollow(name, this.#choices.abilities);
  }

  #show() {
    for (const name of NAMES) write(name, this.#choices.value(name), this.#choices);
    const own = this.#prompts[this.#choices.language || 'en'] ?? '';
    control('instructions').setAttribute('placeholder', own || 'The engine’s own prompt.');
    byId('settings-reset').toggleAttribute('disabled', !this.#choices.any);
    byId('settings-summary').textContent = summary(this.#choices.value('instructions'), this.#choices.abilities);
    this.#describeEagerness();
    this.#count();
  }

  #describeEagerness() {
    const slider = control('eagerness');
    const words = EAGERNESS.find(([upTo]) => Number(slider.value) <= upTo)?.[1] ?? '';
    byId('eagerness-words').textContent = words;
    slider.setAttribute('aria-valuetext', words);
  }

  #count() {
    const { length } = control('instructions').value;
    const left = length >= MAX_INSTRUCTIONS ? ': no more fits in' : '';
    byId('instructions-count').textContent = `${length.toLocaleString('en')} of ${MAX_INSTRUCTIONS.toLocaleString('en')} characters${left}`;
  }
}

/** @param {Name} name */
function control(name) {
  return /** @type {Control} */ (byId(`setting-${name}`));
}

/** @param {Name} name */
function field(name) {
  return /** @type {HTMLElement} */ (control(name).closest('.field'));
}

/**
 * @param {Name} name
 * @returns {any}
 */
function read(name) {
  const element = control(name);
  if (name === 'max_slices') return /** @type {HTMLInputElement} */ (element).checked ? HD_SLICES : 1;
  return ['eagerness', 'pictures_per_unit'].includes(name) ? Number(element.value) : element.value;
}

/**
 * @param {Name} name
 * @param {string | number} value
 * @param {Choices} choices
 */
function write(name, value, choices) {
  const element = control(name);
  if (name === 'max_slices') /** @type {HTMLInputElement} */ (element).checked = value === HD_SLICES;
  // A language that this engine does not speak is kept for one that does.
  else if (name === 'language') element.value = choices.abilities.languages?.includes(String(value)) ? String(value) : '';
  else if (name === 'voice') writeVoice(/** @type {HTMLSelectElement} */ (element), choices);
  // Not under the user's hands: the caret would jump.
  else if (name !== 'instructions' || element !== document.activeElement) element.value = String(value);
}

/**
 * What was chosen while it is there, also while it is being prepared.
 * @param {HTMLSelectElement} select
 * @param {Choices} choices
 */
function writeVoice(select, choices) {
  const wanted = choices.value('voice');
  select.value = choices.voices.some((voice) => voice.id === wanted) ? wanted : choices.voice;
}

/**
 * @param {Name} name
 * @param {'' | 'waiting' | 'ok' | 'refused' | 'later'} verdict
 * @param {string} [text]
 */
function acknowledge(name, verdict, text = '') {
  const place = /** @type {HTMLElement | null} */ (field(name).querySelector('[data-ack]'));
  if (!place) throw new Error(`the page does not say what became of ${name}`);
  place.dataset.ack = verdict;
  place.textContent = text;
}

/**
 * @param {HTMLSelectElement} select
 * @param {string[]} languages
 */
function fillLanguages(select, languages) {
  const options = languages.map((language) => new Option(languageName(language), language));
  select.replaceChildren(new Option('Like this browser', ''), ...options);
}

/**
 * @param {string} instructions
 * @param {Abilities} abilities
 */
function summary(instructions, abilities) {
  const [prompted, pictured] = [canFollow('instructions', abilities), canFollow('pictures_per_unit', abilities)];
  const line = instructions.trim().split('\n')[0];
  if (line && prompted) return line.length > SUMMARY_CHARACTERS ? `“${line.slice(0, SUMMARY_CHARACTERS)}…”` : `“${line}”`;
  return [hasVoices(abilities) && 'voice', prompted && 'prompt, manners', pictured && 'pictures'].filter(Boolean).join(', ');
}

/** @param {HTMLDetailsElement} details */
function rememberOpen(details) {
  details.open = recall('settings-open') === 'yes';
  details.addEventListener('toggle', () => remember('settings-open', details.open ? 'yes' : 'no'));
}

// @ts-check
/**
 * Which voice speaks: the list in the card of settings, filled by the server. Choosing is the card's
 * part (settings_card.js); here is what there is to choose from, to hear, to add and to delete.
 *
 *   #voice-field        hidden where the engine has no voices
 *   #setting-voice      <select>; those being prepared are disabled and asked for until they are ready
 *   #voice-note         what there is to say: who speaks meanwhile, why one failed, when a choice holds
 *   #voice-listen       aria-pressed = true while a sample plays; hidden where the engine reads no texts
 *   #voice-add          opens the dialog (voice_dialog.js)
 *   #voice-delete       deletes the one that is chosen, after #voice-delete-dialog asked
 */

import { languageName, sample } from './languages.js';
import { hasVoices } from './settings.js';
import { byId } from './stage.js';
import { VoiceDialog } from './voice_dialog.js';
import { isAbort, sentence, VoiceProblem, VoicesApi } from './voices.js';
import { Sample } from './voice_sample.js';

/**
 * @typedef {import('./settings.js').Choices} Choices
 * @typedef {import('./settings_card.js').SettingsCard} SettingsCard
 * @typedef {import('./voices.js').Voice} Voice
 */

const POLL_MS = 2_000;

export class VoicePicker {
  #choices;
  #card;
  #api;
  #isLive;
  #adding;
  #select = /** @type {HTMLSelectElement} */ (byId('setting-voice'));
  #listen = /** @type {HTMLButtonElement} */ (byId('voice-listen'));
  #delete = /** @type {HTMLButtonElement} */ (byId('voice-delete'));
  #dialog = /** @type {HTMLDialogElement} */ (byId('voice-delete-dialog'));
  #model = '';
  #polling = 0;
  /** Said until something else is chosen: what became of a voice. */
  #word = '';
  /** Of the sample that comes or plays. @type {AbortController | null} */
  #hearing = null;

  /**
   * @param {Choices} choices
   * @param {SettingsCard} card
   * @param {URL | string} baseUrl where the server's `v1/` lives
   * @param {() => boolean} isLive whether a call is on
   * @param {() => void} silence what else the page plays
   * @param {import('./page_key.js').PageKey} key
   */
  constructor(choices, card, baseUrl, isLive, silence, key) {
    this.#choices = choices;
    this.#card = card;
    this.#api = new VoicesApi(baseUrl, key);
    this.#isLive = isLive;
    const hush = () => {
      this.#hush();
      silence();
    };
    const added = (/** @type {Voice} */ voice) => this.#added(voice);
    this.#adding = new VoiceDialog(choices, this.#api, added, isLive, hush, (name) => this.#abandoned(name));
    this.#select.addEventListener('change', () => this.#onChange());
    this.#listen.addEventListener('click', () => this.#onListen());
    this.#delete.addEventListener('click', () => this.#askToDelete());
    this.#dialog.addEventListener('close', () => this.#onAnswer());
    document.addEventListener('visibilitychange', () => {
      if (document.visibilityState === 'visible') void this.refresh();
    });
  }

  /** @param {import('./signalling.js').EngineInfo} engine */
  useEngine({ id, abilities, mayChangeVoices }) {
    this.#model = id;
    byId('voice-field').hidden = !hasVoices(abilities);
    this.#listen.hidden = !abilities.text_to_speech;
    byId('voice-add').hidden = this.#delete.hidden = !abilities.text_to_speech || !mayChangeVoices;
    void this.refresh();
  }

  /**
   * Ask the server what there is.
   * @param {string} [refused] the id of a voice that the server would not take, perhaps as it is gone
   */
  async refresh(refused = '') {
    if (!hasVoices(this.#choices.abilities)) return;
    clearTimeout(this.#polling);
    try {
      this.#take(await this.#api.list(), refused);
    } catch (error) {
      if (!(error instanceof VoiceProblem)) throw error;
      this.#doWithout(error);
    }
    this.#pollAgain();
  }

  /** @param {Voice} voice just added: it is picked */
  async #added(voice) {
    this.#word = voice.status === 'ready' ? `“${voice.name}” was added.` : '';
    await this.refresh();
    const { voices } = this.#choices;
    if (!voices.some((each) => each.id === voice.id)) this.#choices.voices = [...voices, voice];
    this.#fill();
    this.#card.choose('voice', voice.id);
    this.show();
  }

  /**
   * Saving a voice was given up: say so where it was stored all the same.
   * @param {string} name
   */
  async #abandoned(name) {
    const before = new Set(this.#choices.voices.map((voice) => voice.id));
    await this.refresh();
    const stored = this.#choices.voices.find(
      (voice) => !before.has(voice.id) && (voice.name === name || voice.name.startsWith(`${name} (`)),
    );
    if (!stored) return '';
    const said = `“${stored.name}” was stored before you gave it up. You can delete it in the list of voices.`;
    this.#say(said);
    return said;
  }

  /**
   * Take in a server event; those about other things are ignored.
   * @param {{type: string}} event
   */
  apply({ type }) {
    if (['session.created', 'session.updated', 'output_audio_buffer.started', 'error'].includes(type)) this.show();
  }

  /** A call began, ended, or the agent spoke in it. */
  callChanged() {
    if (this.#isLive()) this.#hush();
    this.#adding.callChanged();
    this.show();
  }

  show() {
    const voice = this.#shown();
    const note = byId('voice-note');
    const text = this.#word || noteFor(this.#choices, voice);
    if (note.textContent !== text) note.textContent = text;
    this.#listen.disabled = this.#isLive() || voice?.status !== 'ready';
    this.#listen.title = this.#isLive() ? 'Your call has the model: hang up to listen.' : '';
    this.#delete.disabled = !voice || voice.built_in;
    const stays = voice?.built_in ? 'Built-in voices cannot be deleted, only those that were added.' : '';
    this.#delete.title = stays;
    this.#delete.setAttribute('aria-description', stays);
  }

  // ---- what there is ----------------------------------------------------------------------------

  /**
   * @param {Voice[]} voices
   * @param {string} refused
   */
  #take(voices, refused) {
    const wanted = this.#choices.chosenVoice || refused;
    const before = this.#choices.voices;
    this.#choices.voices = voices;
    if (wanted && !voices.some((voice) => voice.id === wanted)) this.#fallBack(wanted, before);
    this.#fill();
    this.#card.voicesChanged();
    this.show();
  }

  /**
   * @param {string} id of a voice that has vanished
   * @param {Voice[]} before
   */
  #fallBack(id, before) {
    const name = before.find((voice) => voice.id === id)?.name ?? id;
    this.#choices.forget('voice');
    const speaker = this.#choices.voices.find((voice) => voice.id === speakerOf(this.#choices));
    this.#word = `The voice “${name}” is gone${speaker ? `: “${speaker.name}” speaks instead` : ''}.`;
  }

  /**
   * The list did not come: what the engine named at its start has to do.
   * @param {VoiceProblem} problem
   */
  #doWithout(problem) {
    if (!this.#choices.voices.length) {
      const named = this.#choices.abilities.voices ?? [];
      this.#choices.voices = named.map((id) => ({ id, name: id, built_in: true, status: 'ready' }));
      this.#word = `The voices could not be asked for. ${problem.message}`;
    }
    this.#fill();
    this.#card.voicesChanged();
    this.show();
  }

  #pollAgain() {
    const waiting = this.#choices.voices.some((voice) => voice.status === 'preparing');
    if (!waiting || document.visibilityState !== 'visible') return;
    clearTimeout(this.#polling);
    this.#polling = setTimeout(() => void this.refresh(), POLL_MS);
  }

  #fill() {
    const { voices } = this.#choices;
    const chosen = this.#select.value;
    const own = voices.filter((voice) => !voice.built_in);
    const builtIn = voices.filter((voice) => voice.built_in);
    const both = own.length > 0 && builtIn.length > 0;
    this.#select.replaceChildren(
      ...(both ? [group('Built in', builtIn), group('Added here', own)] : voices.map(option)),
    );
    this.#select.value = chosen;
  }

  #shown() {
    return this.#choices.voices.find((voice) => voice.id === this.#select.value);
  }

  #onChange() {
    this.#word = '';
    this.#hush();
    this.show();
  }

  // ---- to hear ----------------------------------------------------------------------------------

  async #onListen() {
    const voice = this.#shown();
    if (this.#hearing) return this.#hush();
    if (!voice) return;
    this.#word = '';
    const hearing = (this.#hearing = new AbortController());
    this.#showHearing();
    const heard = new Sample(() => this.#heard(hearing));
    hearing.signal.addEventListener('abort', () => heard.stop());
    const language = this.#sampleLanguage(voice);
    const speech = { model: this.#model, voice: voice.id, input: sample(language), language };
    try {
      const sound = await this.#api.speak(speech, hearing.signal);
      if (!hearing.signal.aborted) await heard.play(sound);
    } catch (error) {
      this.#heard(hearing);
      if (error instanceof VoiceProblem) await this.#unheard(voice, error);
      else if (!isAbort(error)) throw error;
    }
  }

  /**
   * The voice may have been deleted elsewhere: then that is what there is to say.
   * @param {Voice} voice
   * @param {VoiceProblem} problem
   */
  async #unheard(voice, problem) {
    const isRefused = problem.status >= 400 && problem.status < 500;
    if (isRefused) await this.refresh(voice.id);
    if (!isRefused || this.#choices.voices.some((each) => each.id === voice.id)) this.#say(problem.message);
  }

  /**
   * That of the voice, where the engine speaks it.
   * @param {Voice} voice
   */
  #sampleLanguage({ language }) {
    const { languages = [] } = this.#choices.abilities;
    return language && languages.includes(language) ? language : this.#choices.language || languages[0] || 'en';
  }

  #hush() {
    const hearing = this.#hearing;
    hearing?.abort();
    if (hearing) this.#heard(hearing);
  }

  /** @param {AbortController} hearing */
  #heard(hearing) {
    if (this.#hearing !== hearing) return;
    this.#hearing = null;
    this.#showHearing();
  }

  #showHearing() {
    this.#listen.setAttribute('aria-pressed', String(this.#hearing !== null));
  }

  // ---- to delete --------------------------------------------------------------------------------

  #askToDelete() {
    const voice = this.#shown();
    if (!voice || voice.built_in) return;
    this.#hush();
    byId('voice-delete-title').textContent = `Delete the voice “${voice.name}”?`;
    this.#dialog.dataset.voice = voice.id;
    this.#dialog.returnValue = '';
    this.#dialog.showModal();
  }

  async #onAnswer() {
    const voice = this.#choices.voices.find((each) => each.id === this.#dialog.dataset.voice);
    if (this.#dialog.returnValue !== 'delete' || !voice) return;
    try {
      await this.#api.remove(voice.id);
      if (this.#choices.chosenVoice === voice.id) this.#choices.forget('voice');
      this.#word = `“${voice.name}” was deleted.`;
      await this.refresh();
      this.#select.focus();
    } catch (error) {
      if (!(error instanceof VoiceProblem)) throw error;
      this.#say(error.message);
    }
  }

  /** @param {string} word */
  #say(word) {
    this.#word = word;
    this.show();
  }
}

/**
 * @param {string} label
 * @param {Voice[]} voices
 */
function group(label, voices) {
  const made = document.createElement('optgroup');
  made.label = label;
  made.append(...voices.map(option));
  return made;
}

/** @param {Voice} voice */
function option({ id, name, status, language }) {
  const suffix = { ready: '', preparing: ' (being prepared…)', failed: ' (failed)' }[status] ?? '';
  const made = new Option(`${name}${language ? ` · ${languageName(language)}` : ''}${suffix}`, id);
  // One that failed can be chosen, to be read about and deleted.
  made.disabled = status === 'preparing';
  return made;
}

/**
 * The voice of the running call, or of the next one.
 * @param {Choices} choices
 */
function speakerOf(choices) {
  return choices.voiceInForce || choices.voice;
}

/**
 * @param {Choices} choices
 * @param {Voice | undefined} voice that is shown
 */
function noteFor(choices, voice) {
  const speaking = speakerOf(choices);
  const name = choices.voices.find((each) => each.id === speaking)?.name;
  const meanwhile = name ? `“${name}” speaks` : 'no voice speaks';
  if (voice?.status === 'preparing') return `“${voice.name}” is being prepared. Until it is ready, ${meanwhile}.`;
  if (voice?.status === 'failed') {
    return `“${voice.name}” could not be prepared: ${sentence(voice.error || 'the server’s log says why')} Meanwhile, ${meanwhile}.`;
  }
  if (choices.voiceLocked) {
    const keeps = name && voice?.id !== speaking ? `This call keeps “${name}”: another` : 'Another';
    return `${keeps} voice needs a new call.`;
  }
  return (voice?.notes ?? []).map(sentence).join(' ');
}

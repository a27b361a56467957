// @ts-check
/**
 * "Add a voice": a recording (voice_take.js), what the server thinks of it, a name, consent. Nothing
 * leaves the page before a press on #voice-save, which first checks and then saves.
 *
 *   #voice-dialog      data-busy = '' | check | save
 *   #voice-save        data-next = check | save: what a press does
 *   #voice-report      data-verdict = '' | ok | warning | failing; li[data-verdict] its findings
 *   #voice-progress    how much of the recording is sent
 *   #voice-problem     role=alert; #voice-files beside it which files can be used, where one cannot
 *   #voice-leave       asks, instead of the buttons, before a recording is thrown away unsaved
 */

import { languageName, reading } from './languages.js';
import { byId } from './stage.js';
import { VoiceTake } from './voice_take.js';
import { isAbort, sentence, VoiceProblem } from './voices.js';

/**
 * @typedef {import('./settings.js').Choices} Choices
 * @typedef {import('./voices.js').Finding} Finding
 * @typedef {import('./voices.js').Report} Report
 * @typedef {import('./voices.js').VoicesApi} VoicesApi
 * @typedef {import('./voice_take.js').Recording} Recording
 */

/** What to do about a finding, where its sentence does not say it. @type {Record<string, string>} */
const ADVICE = {
  clipped: 'Move away from the microphone a little.',
  little_speech: 'Read without long pauses.',
  narrow_band: 'Use another microphone than that of a headset on Bluetooth, if you can.',
  no_speech: 'Is it the right file, or the right microphone?',
  noisy: 'Choose a quieter room, and come closer to the microphone.',
  quiet: 'Come closer to the microphone, or raise its level.',
  silent: 'Check which microphone is chosen under “Devices”.',
  silent_end: 'Stop right after the last word.',
  too_short: 'Read the whole text.',
};

/** @type {Record<Finding['severity'], 'failing' | 'warning' | 'note'>} */
const VERDICTS = { refused: 'failing', warning: 'warning', note: 'note' };
const SIGNS = { failing: 'To be mended:', warning: 'Could be better:', note: 'Note:' };
const UNCHECKED = 'The check sends the recording to the server, which measures it and keeps nothing. Only “Save the voice” stores it.';
const RESULTS = {
  ok: 'Accepted: the recording is good.',
  warning: 'Accepted. It could be better:',
  failing: 'It cannot be used yet:',
};

export class VoiceDialog {
  #choices;
  #api;
  #added;
  #silence;
  #abandoned;
  #take;
  #dialog = /** @type {HTMLDialogElement} */ (byId('voice-dialog'));
  #fields = /** @type {HTMLFieldSetElement} */ (byId('voice-fields'));
  #language = /** @type {HTMLSelectElement} */ (byId('voice-language'));
  #name = /** @type {HTMLInputElement} */ (byId('voice-name'));
  #consent = /** @type {HTMLInputElement} */ (byId('voice-consent'));
  #save = /** @type {HTMLButtonElement} */ (byId('voice-save'));
  #progress = /** @type {HTMLProgressElement} */ (byId('voice-progress'));
  /** Of this recording alone. @type {Report | null} */
  #report = null;
  /** @type {AbortController | null} */
  #sending = null;

  /**
   * @param {Choices} choices
   * @param {VoicesApi} api
   * @param {(voice: import('./voices.js').Voice) => void} added
   * @param {() => boolean} isLive whether a call is on
   * @param {() => void} silence whatever the page plays
   * @param {(name: string) => Promise<string>} abandoned looks whether a voice whose saving was given
   *   up is there all the same, and says so
   */
  constructor(choices, api, added, isLive, silence, abandoned) {
    this.#choices = choices;
    this.#api = api;
    this.#added = added;
    this.#silence = silence;
    this.#abandoned = abandoned;
    this.#take = new VoiceTake(() => this.#onTake(), isLive, silence);
    byId('voice-add').addEventListener('click', () => this.open());
    byId('voice-close').addEventListener('click', () => this.#leave());
    byId('voice-leave-no').addEventListener('click', () => this.#askToLeave(false));
    byId('voice-leave-yes').addEventListener('click', () => this.#dialog.close());
    this.#dialog.addEventListener('keydown', (event) => this.#onKey(event));
    this.#dialog.addEventListener('cancel', (event) => this.#onBack(event));
    byId('voice-cancel').addEventListener('click', () => this.#onCancel());
    byId('voice-form').addEventListener('submit', (event) => this.#onSubmit(event));
    this.#language.addEventListener('change', () => this.#showReading());
    this.#dialog.addEventListener('close', () => this.#onClose());
  }

  open() {
    this.#silence();
    this.#askToLeave(false);
    fillLanguages(this.#language, this.#choices.abilities.languages ?? [], this.#choices.language);
    this.#showReading();
    this.#name.value = '';
    this.#consent.checked = false;
    this.#take.clear();
    this.#dialog.showModal();
    byId('voice-body').scrollTop = 0;
  }

  callChanged() {
    this.#take.callChanged();
  }

  // ---- leave ------------------------------------------------------------------------------------

  /** Close, unless that would throw away what nobody has saved: then ask. */
  #leave() {
    if (this.#take.recording) this.#askToLeave(true);
    else this.#dialog.close();
  }

  /** @param {boolean} asking */
  #askToLeave(asking) {
    const left = !asking && !byId('voice-leave').hidden;
    byId('voice-leave').hidden = !asking;
    byId('voice-buttons').hidden = asking;
    if (asking) byId('voice-leave-no').focus();
    else if (left) byId('voice-cancel').focus();
  }

  /**
   * Escape, before the browser closes the dialog: that it can be asked to let be only once.
   * @param {KeyboardEvent} event
   */
  #onKey(event) {
    if (event.key !== 'Escape' || event.isComposing) return;
    event.preventDefault();
    if (byId('voice-leave').hidden) this.#leave();
    else this.#askToLeave(false);
  }

  /**
   * The gesture of phones that goes back.
   * @param {Event} event
   */
  #onBack(event) {
    if (event.target !== this.#dialog || !this.#take.recording) return;
    event.preventDefault();
    this.#askToLeave(true);
  }

  #onClose() {
    this.#sending?.abort();
    this.#take.clear();
  }

  /** While something is sent, that is given up; else all of it. */
  #onCancel() {
    if (this.#sending) this.#sending.abort();
    else this.#dialog.close();
  }

  #onTake() {
    this.#report = null;
    this.#complain('');
    this.#show();
  }

  // ---- check and save ---------------------------------------------------------------------------

  /** @param {Event} event */
  #onSubmit(event) {
    event.preventDefault();
    const { recording } = this.#take;
    if (!recording || this.#sending || this.#save.disabled) return;
    if (this.#save.dataset.next === 'check') void this.#send('check', (sending) => this.#check(recording, sending));
    else if (this.#isComplete()) void this.#send('save', (sending) => this.#store(recording, sending));
  }

  /**
   * @param {Recording} recording
   * @param {import('./voices.js').Sending} sending
   */
  async #check(recording, sending) {
    const report = await this.#api.check(recording.sound, recording.fileName, sending);
    // Of another recording than the present one it says nothing.
    if (!sending.signal.aborted && this.#take.recording === recording) this.#report = report;
  }

  /**
   * @param {Recording} recording
   * @param {import('./voices.js').Sending} sending
   */
  async #store({ sound, fileName }, sending) {
    const voice = await this.#api.add(
      {
        name: this.#name.value.trim(),
        recording: sound,
        fileName,
        language: this.#language.value,
        consent: byId('voice-consent-text').textContent?.trim() ?? '',
      },
      sending,
    );
    this.#dialog.close();
    this.#added(voice);
  }

  /**
   * @param {'check' | 'save'} what
   * @param {(sending: import('./voices.js').Sending) => Promise<void>} work
   */
  async #send(what, work) {
    const sending = (this.#sending = new AbortController());
    this.#complain('');
    this.#busy(what);
    try {
      await work({ signal: sending.signal, onProgress: (share) => this.#showProgress(share) });
    } catch (error) {
      if (error instanceof VoiceProblem) this.#complain(error.message, error.files);
      else if (!isAbort(error)) throw error;
    } finally {
      this.#sending = null;
      this.#busy('');
      this.#show();
    }
    // The server may have been quicker.
    if (what === 'save' && sending.signal.aborted) {
      const stored = await this.#abandoned(this.#name.value.trim());
      if (this.#dialog.open) this.#complain(stored);
    }
    // With what there is to do next below it.
    if (what === 'check' && this.#report) byId('voice-report').scrollIntoView({ block: 'start' });
  }

  #isComplete() {
    const missing = !this.#name.value.trim()
      ? /** @type {const} */ ([this.#name, 'Give the voice a name.'])
      : this.#consent.checked
        ? null
        : /** @type {const} */ ([this.#consent, 'Without consent the voice cannot be saved: tick the box if it is so.']);
    this.#complain(missing?.[1] ?? '');
    for (const field of [this.#name, this.#consent]) field.toggleAttribute('aria-invalid', false);
    missing?.[0].setAttribute('aria-invalid', 'true');
    missing?.[0].focus();
    return !missing;
  }

  // ---- on the screen ----------------------------------------------------------------------------

  #show() {
    const { recording } = this.#take;
    const checked = this.#report?.accepted === true;
    this.#save.dataset.next = checked ? 'save' : 'check';
    this.#save.textContent = checked ? 'Save the voice' : 'Check the recording';
    // What was refused is refused again.
    this.#save.disabled = !recording || this.#report?.accepted === false;
    showReport(this.#report);
  }

  /** @param {'' | 'check' | 'save'} what */
  #busy(what) {
    this.#dialog.dataset.busy = what;
    this.#fields.disabled = what !== '';
    this.#progress.hidden = what === '';
    if (what) this.#save.textContent = what === 'check' ? 'Checking…' : 'Saving…';
    if (what) this.#showProgress(0);
    else byId('voice-progress-words').textContent = '';
  }

  /** @param {number} share of what is sent */
  #showProgress(share) {
    if (share < 1) this.#progress.value = share;
    else this.#progress.removeAttribute('value');
    const saving = this.#dialog.dataset.busy === 'save';
    const after = saving ? 'Sent: the server stores it…' : 'Sent: the server measures it…';
    const words = byId('voice-progress-words');
    const text = share < 1 ? 'Sending…' : after;
    if (words.textContent !== text) words.textContent = text;
  }

  /**
   * @param {string} text
   * @param {string} [files] which can be used
   */
  #complain(text, files = '') {
    byId('voice-problem').textContent = text;
    byId('voice-files-words').textContent = files;
    byId('voice-files').hidden = !files;
    byId('voice-files').toggleAttribute('open', false);
  }

  #showReading() {
    const { text, language } = reading(this.#language.value);
    const place = byId('voice-reading');
    place.textContent = text;
    place.lang = language;
  }
}

/** @param {Report | null} report */
function showReport(report) {
  const root = byId('voice-report');
  const findings = report?.findings ?? [];
  const verdict = !report ? '' : !report.accepted ? 'failing' : findings.some((each) => each.severity === 'warning') ? 'warning' : 'ok';
  root.dataset.verdict = verdict;
  byId('voice-verdict').textContent = verdict ? RESULTS[verdict] : UNCHECKED;
  byId('voice-findings').replaceChildren(...findings.map(findingRow));
}

/** @param {Finding} finding */
function findingRow({ code, severity, message }) {
  const row = document.createElement('li');
  const verdict = VERDICTS[severity] ?? 'note';
  row.dataset.verdict = verdict;
  // For those who hear the page; the sign is for those who see it.
  const sign = document.createElement('span');
  sign.className = 'verdict';
  sign.textContent = `${SIGNS[verdict]} `;
  const words = document.createElement('span');
  words.textContent = [sentence(message), severity === 'note' ? '' : ADVICE[code]].filter(Boolean).join(' ');
  row.append(sign, words);
  return row;
}

/**
 * @param {HTMLSelectElement} select
 * @param {string[]} languages
 * @param {string} preferred
 */
function fillLanguages(select, languages, preferred) {
  const options = languages.map((language) => new Option(languageName(language), language));
  select.replaceChildren(...options, new Option('Another language', ''));
  select.value = languages.includes(preferred) ? preferred : (languages[0] ?? '');
}

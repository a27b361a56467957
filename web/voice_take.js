// @ts-check
/**
 * Where the recording of a new voice comes from: spoken here, or a file. It stays in the page until
 * the dialog (voice_dialog.js) sends it.
 *
 *   input[name=voice-source]   record | file
 *   #voice-record-button       data-state = idle | asking | recording
 *   #voice-meter               role=meter, aria-valuenow = 0 to 100
 *   #voice-timer               how much longer it may last
 *   #voice-take-note           what became of it; data-tone = bad where it cannot be used
 *   #voice-preview             <audio> to listen to it
 */

import { rememberedDevice } from './devices.js';
import { meterShare, SILENT_DB } from './meter.js';
import { CallProblem, describe } from './problems.js';
import { GOOD_S, LONGEST_S, Recorder, SHORTEST_S } from './recorder.js';
import { byId } from './stage.js';
import { asWav } from './wav.js';

/** @typedef {{sound: Blob, fileName: string}} Recording */
/** @typedef {'record' | 'file'} Source */

/** What no server takes; its own limit is lower, and it says so. */
const MAX_FILE_BYTES = 64 * 1024 * 1024;
/** Of what is no recording by its own account. */
const OTHER_TYPES = /^(image|text|font)\/|^application\/(pdf|json|zip)/;
const IN_CALL = 'Hang up to record: in a call the agent would hear it, and answer.';

export class VoiceTake {
  #changed;
  #isLive;
  #silence;
  #button = /** @type {HTMLButtonElement} */ (byId('voice-record-button'));
  #meter = byId('voice-meter');
  #note = byId('voice-take-note');
  #preview = /** @type {HTMLAudioElement} */ (byId('voice-preview'));
  #picker = /** @type {HTMLInputElement} */ (byId('voice-file-input'));
  /** @type {Recorder | null} */
  #recorder = null;
  /** @type {Recording | null} */
  recording = null;
  #loudestDb = -Infinity;
  #longEnough = false;

  /**
   * @param {() => void} changed another recording than before, or none
   * @param {() => boolean} isLive whether a call is on
   * @param {() => void} silence whatever the page plays: the recording would have it in it
   */
  constructor(changed, isLive, silence) {
    this.#changed = changed;
    this.#isLive = isLive;
    this.#silence = silence;
    this.#button.addEventListener('click', () => this.#onButton());
    for (const radio of sources()) radio.addEventListener('change', () => this.#onSource());
    byId('voice-drop').addEventListener('click', () => this.#picker.click());
    this.#picker.addEventListener('change', () => this.#onPicked());
    window.addEventListener('pagehide', () => this.clear());
    this.#receiveFiles(byId('voice-dialog'));
  }

  /** Nothing recorded, nothing chosen; the microphone is given back. */
  clear() {
    this.#recorder?.cancel();
    this.#recorder = null;
    this.#keep(null);
    this.#say(this.#source === 'record' && this.#isLive() ? IN_CALL : '');
    this.#show('idle');
  }

  callChanged() {
    if (this.#recorder && this.#isLive()) this.clear();
    this.#show(/** @type {any} */ (this.#button.dataset.state));
    if (this.#note.textContent === IN_CALL && !this.#isLive()) this.#say('');
  }

  // ---- spoken -----------------------------------------------------------------------------------

  #onButton() {
    if (this.#recorder && this.#button.dataset.state === 'recording') this.#recorder.stop();
    else if (this.#recorder) this.clear();
    else void this.#record();
  }

  async #record() {
    this.clear();
    this.#silence();
    this.#loudestDb = -Infinity;
    this.#longEnough = false;
    const recorder = (this.#recorder = new Recorder({
      onLevel: (levelDb, seconds) => this.#onLevel(levelDb, seconds),
      onDone: (take) => this.#onDone(take),
    }));
    this.#show('asking');
    this.#say('Allow the microphone if your browser asks.');
    try {
      await recorder.start(rememberedDevice('audioinput'));
      if (this.#recorder !== recorder) return;
      this.#show('recording');
      this.#say('Recording: read the text aloud, calmly.');
      // On a phone the meter and this may be below what is seen.
      this.#note.scrollIntoView({ block: 'nearest' });
    } catch (error) {
      if (!(error instanceof CallProblem)) throw error;
      const { title, advice } = describe(error, true);
      this.clear();
      this.#say(`${title}. ${advice}`, 'bad');
    }
  }

  /**
   * @param {number} levelDb
   * @param {number} seconds
   */
  #onLevel(levelDb, seconds) {
    this.#loudestDb = Math.max(this.#loudestDb, levelDb);
    const share = meterShare(levelDb);
    this.#meter.style.setProperty('--level', share.toFixed(3));
    this.#meter.style.setProperty('--done', (seconds / LONGEST_S).toFixed(3));
    this.#meter.setAttribute('aria-valuenow', String(Math.round(100 * share)));
    showTimer(`${Math.ceil(LONGEST_S - seconds)} s left`);
    if (this.#longEnough || seconds < GOOD_S) return;
    this.#longEnough = true;
    this.#say('Long enough: stop when you have read it.');
  }

  /** @param {import('./recorder.js').Take} take */
  #onDone({ pieces, rateHz, seconds }) {
    this.#recorder = null;
    this.#show('idle');
    const length = `${seconds.toFixed(1)} s`;
    if (this.#loudestDb < SILENT_DB) {
      this.#say('Nothing was heard. Is the right microphone chosen under “Devices”, and is it on?', 'bad');
    } else if (seconds < SHORTEST_S) {
      this.#say(`That was only ${length}: at least ${SHORTEST_S} s of speech are needed. Record again, and read the whole text.`, 'bad');
    } else {
      this.#keep({ sound: asWav(pieces, rateHz), fileName: 'recording.wav' });
      this.#say(`Recorded ${length}. Listen to it: is it clear, and without noise?`);
    }
    this.#show('idle');
  }

  // ---- a file -----------------------------------------------------------------------------------

  get #source() {
    return /** @type {Source} */ (sources().find((radio) => radio.checked)?.value ?? 'record');
  }

  #onSource() {
    byId('voice-record').hidden = this.#source !== 'record';
    byId('voice-file').hidden = this.#source !== 'file';
    this.clear();
  }

  #onPicked() {
    const [file] = this.#picker.files ?? [];
    if (file) this.#useFile(file);
    this.#picker.value = '';
  }

  /** @param {File} file */
  #useFile(file) {
    for (const radio of sources()) radio.checked = radio.value === 'file';
    this.#onSource();
    if (OTHER_TYPES.test(file.type)) this.#say(`“${file.name}” is no recording: choose an audio file.`, 'bad');
    else if (file.size === 0) this.#say(`“${file.name}” is empty.`, 'bad');
    else if (file.size > MAX_FILE_BYTES) this.#say(`“${file.name}” is too large: cut it to 15 seconds.`, 'bad');
    else {
      this.#keep({ sound: file, fileName: file.name });
      this.#say(`“${file.name}”. Listen to it: does one person speak, clear and without noise?`);
    }
  }

  /** @param {HTMLElement} zone */
  #receiveFiles(zone) {
    zone.addEventListener('dragover', (event) => {
      if (event.dataTransfer?.types.includes('Files')) zone.dataset.drop = 'here';
    });
    for (const end of ['dragleave', 'drop']) zone.addEventListener(end, () => delete zone.dataset.drop);
    zone.addEventListener('drop', (event) => {
      const [file] = event.dataTransfer?.files ?? [];
      if (!file) return;
      event.preventDefault();
      if (!zone.dataset.busy) this.#useFile(file);
    });
  }

  // ---- on the screen ----------------------------------------------------------------------------

  /** @param {Recording | null} recording */
  #keep(recording) {
    if (this.#preview.src) {
      this.#preview.pause();
      URL.revokeObjectURL(this.#preview.src);
    }
    this.recording = recording;
    if (recording) this.#preview.src = URL.createObjectURL(recording.sound);
    else this.#preview.removeAttribute('src');
    this.#preview.dataset.filled = recording ? 'yes' : '';
    this.#changed();
  }

  /** @param {'idle' | 'asking' | 'recording'} state */
  #show(state) {
    const again = this.recording ? 'Record again' : 'Record';
    this.#button.dataset.state = state;
    this.#button.disabled = this.#isLive();
    const words = { idle: again, asking: 'Cancel', recording: 'Stop' };
    this.#button.textContent = words[state];
    if (state === 'recording') return;
    showTimer(`Up to ${LONGEST_S} s`);
    for (const name of ['--level', '--done']) this.#meter.style.setProperty(name, '0');
    this.#meter.setAttribute('aria-valuenow', '0');
  }

  /**
   * @param {string} text
   * @param {'' | 'bad'} [tone]
   */
  #say(text, tone = '') {
    this.#note.dataset.tone = tone;
    this.#note.textContent = text;
  }
}

/** @param {string} text */
function showTimer(text) {
  if (byId('voice-timer').textContent !== text) byId('voice-timer').textContent = text;
}

function sources() {
  return /** @type {HTMLInputElement[]} */ ([...document.querySelectorAll('input[name=voice-source]')]);
}

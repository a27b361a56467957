// @ts-check
/**
 * Is this call in order? Facts go in (levels, statistics, server events), rows come out, each with
 * a verdict and, where it is not good, what to do. The panel below shows them.
 */

import { SILENT_DB } from './meter.js';

/**
 * @typedef {'waiting' | 'ok' | 'warning' | 'failing'} Verdict
 * @typedef {{id: string, label: string, verdict: Verdict, value: string, advice: string}} Row
 * @typedef {import('./statistics.js').Statistics} Statistics
 * @typedef {import('./pictures.js').PictureSource} PictureSource
 */

/** Good below the first figure, still usable below the second. */
const LIMITS = {
  roundTripMs: [200, 400],
  lossPercent: [2, 8],
  concealedPercent: [2, 5],
  jitterBufferMs: [150, 300],
  firstSoundMs: [1000, 2000],
  unitMs: [700, 1000],
};
/** Speech into a working microphone is louder than this. */
const SPEECH_DB = -45;
/** How long to wait for a fact before its absence counts. */
const PATIENCE_MS = 12_000;
const GOOD_ERLE_DB = 10;
/** Speech found while the agent speaks, so often, may be the agent itself. */
const SUSPICIOUS_OVERLAPS = 3;

/** @type {Record<PictureSource, string>} */
const NOTHING_SENT = {
  camera: 'No picture goes out: is the camera covered, or used by another program? Switch it off and on again.',
  screen: 'No picture goes out: is the shared window hidden or minimised? Show it, or share another one.',
};

/** @type {Record<Verdict, string>} */
const WORDS = { waiting: 'waiting', ok: 'ok', warning: 'look at this', failing: 'not working' };

export class Preflight {
  #startedMs = 0;
  #nowMs = 0;
  #peakDb = -Infinity;
  #heard = false;
  #agentSpeaks = false;
  #overlaps = 0;
  #picture = /** @type {{source: PictureSource, sinceMs: number} | null} */ (null);
  #muted = false;
  #echo = /** @type {{erleDb: number, delayMs: number} | null} */ (null);
  #firstSoundMs = /** @type {number | null} */ (null);
  #unit = /** @type {{ms: number, tokens: number} | null} */ (null);
  #statistics = /** @type {Statistics | null} */ (null);

  #captionsOnly;

  /**
   * @param {number} nowMs
   * @param {boolean} [captionsOnly] the engine has no voice: there is no sound of it to wait for
   */
  constructor(nowMs, captionsOnly = false) {
    this.#startedMs = this.#nowMs = nowMs;
    this.#captionsOnly = captionsOnly;
  }

  /** @param {number} nowMs */
  tick(nowMs) {
    this.#nowMs = nowMs;
  }

  /** @param {number} levelDb */
  microphoneLevel(levelDb) {
    this.#peakDb = Math.max(this.#peakDb, levelDb);
  }

  /** Another microphone proves itself anew. */
  microphoneChanged() {
    this.#peakDb = -Infinity;
    this.#heard = false;
    this.#startedMs = this.#nowMs;
  }

  /** @param {boolean} muted */
  muted(muted) {
    this.#muted = muted;
  }

  /** @param {PictureSource | null} source what is shown from now on */
  picture(source) {
    this.#picture = source && { source, sinceMs: this.#nowMs };
  }

  /** @param {Statistics} statistics */
  statistics(statistics) {
    this.#statistics = statistics;
  }

  /**
   * Take in a server event; those about other things are ignored.
   * @param {any} event
   */
  apply(event) {
    if (event.type === 'input_audio_buffer.speech_started') this.#onSpeech();
    else if (event.type === 'output_audio_buffer.started') this.#agentSpeaks = true;
    else if (event.type.startsWith('output_audio_buffer.')) this.#agentSpeaks = false;
    else if (event.type === 'voice_agent.echo') this.#echo = { erleDb: event.erle_db, delayMs: event.delay_ms ?? 0 };
    else if (event.type === 'voice_agent.latency') this.#firstSoundMs = event.first_sound_ms;
    else if (event.type === 'voice_agent.unit') {
      this.#unit = { ms: sum(Object.values(event.stage_ms ?? {})), tokens: event.context_tokens ?? 0 };
    }
  }

  /** What cannot wait until somebody looks at the rows; '' when all is well. */
  alarm() {
    const delayMs = this.#statistics?.jitterBufferMs ?? 0;
    if (this.#captionsOnly) return '';
    if (delayMs <= LIMITS.jitterBufferMs[1]) return '';
    return `Sound comes ${(delayMs / 1000).toFixed(1)} s late: see the checks`;
  }

  /** @returns {Row[]} */
  rows() {
    const { roundTripMs = null, lossPercent = null, concealedPercent = null, jitterBufferMs = null } = this.#statistics ?? {};
    return [
      this.#microphoneRow(),
      this.#hearingRow(),
      this.#pictureRow(),
      this.#echoRow(),
      this.#firstSoundRow(),
      graded('roundTrip', 'Network round trip', roundTripMs, LIMITS.roundTripMs, 'ms', 'The network is slow: try a cable, another Wi-Fi, or a server nearer to you.'),
      graded('loss', 'Lost packets', lossPercent, LIMITS.lossPercent, '%', 'Sound is being lost: go nearer to the Wi-Fi router, or use a cable.'),
      this.#ofVoice(graded('concealed', 'Gaps filled in', concealedPercent, LIMITS.concealedPercent, '%', 'Your browser makes up for sound that came too late: try a cable or another Wi-Fi.')),
      this.#ofVoice(graded('jitterBuffer', 'Jitter buffer', jitterBufferMs, LIMITS.jitterBufferMs, 'ms', 'Packets come unevenly, so sound is held back: try a cable or another Wi-Fi.')),
      this.#engineRow(),
    ];
  }

  #onSpeech() {
    this.#heard = true;
    if (this.#agentSpeaks) this.#overlaps += 1;
  }

  #impatient() {
    return this.#nowMs - this.#startedMs > PATIENCE_MS;
  }

  #microphoneRow() {
    const row = rowOf('microphone', 'Microphone');
    if (this.#muted) return judge(row, 'warning', 'muted', 'You muted it: press “Muted” to be heard.');
    if (this.#peakDb >= SPEECH_DB) return judge(row, 'ok', inDb('peak ', this.#peakDb));
    if (!this.#impatient()) return judge(row, 'waiting', 'say something');
    if (this.#peakDb < SILENT_DB) return judge(row, 'failing', 'silent', 'No sound arrives: is it switched off, or is another one chosen under “Devices”?');
    return judge(row, 'warning', inDb('peak ', this.#peakDb), 'Very quiet: come nearer, or turn its level up in the system’s settings.');
  }

  #hearingRow() {
    const row = rowOf('hearing', 'The server hears you');
    if (this.#heard) return judge(row, 'ok', 'yes');
    if (this.#muted || !this.#impatient() || this.#peakDb < SPEECH_DB) return judge(row, 'waiting', 'say something');
    return judge(row, 'failing', 'not yet', 'Your microphone works here, but no speech was found there. Speak a whole sentence; if that fails, call again.');
  }

  #pictureRow() {
    const row = rowOf('picture', 'Picture');
    if (this.#picture === null) return judge(row, 'waiting', 'off');
    const { source, sinceMs } = this.#picture;
    const sent = this.#statistics?.picture;
    if (sent && sent.perSecond > 0) return judge(row, 'ok', `${source} ${sent.width} × ${sent.height}, ${sent.perSecond.toFixed(1)} per s`);
    if (this.#nowMs - sinceMs < PATIENCE_MS) return judge(row, 'waiting', 'starting');
    return judge(row, 'failing', 'nothing sent', NOTHING_SENT[source]);
  }

  #echoRow() {
    const row = rowOf('echo', 'Echo reduction');
    if (this.#captionsOnly) return judge(row, 'waiting', 'no voice, no echo');
    if (this.#echo === null) return judge(row, 'waiting', 'when the agent has spoken');
    const { erleDb, delayMs } = this.#echo;
    const value = inDb('', erleDb) + (delayMs > 0 ? `, ${delayMs.toFixed(0)} ms delay` : '');
    if (erleDb >= GOOD_ERLE_DB) return judge(row, 'ok', value);
    // Low is normal with headphones, or where the browser removed the echo before the server could.
    if (this.#overlaps < SUSPICIOUS_OVERLAPS) return judge(row, 'ok', `${value}, little to remove`);
    return judge(row, 'warning', value, 'The agent may be hearing itself: turn the loudspeaker down, or use headphones.');
  }

  #firstSoundRow() {
    return this.#ofVoice(graded('firstSound', 'Time to first sound', this.#firstSoundMs, LIMITS.firstSoundMs, 'ms', 'The agent is slow to answer: the engine may need a faster GPU, or fewer calls at once.'));
  }

  /**
   * Of silence nobody misses anything.
   * @param {Row} row about the agent's sound
   * @returns {Row}
   */
  #ofVoice(row) {
    return this.#captionsOnly ? judge(row, 'waiting', 'no voice, captions only') : row;
  }

  #engineRow() {
    const row = graded('engine', 'Engine work per second', this.#unit?.ms ?? null, LIMITS.unitMs, 'ms', 'The engine barely keeps up: fewer calls at once, or a faster GPU.');
    if (this.#unit?.tokens) row.value += ` · ${this.#unit.tokens} tokens`;
    return row;
  }
}

/**
 * How a list of rows sums up, for the panel's closed heading.
 * @param {Row[]} rows
 */
export function summary(rows) {
  const bad = rows.filter((row) => row.verdict === 'warning' || row.verdict === 'failing').length;
  if (bad) return `${bad} to look at`;
  const good = rows.filter((row) => row.verdict === 'ok').length;
  return `${good}/${rows.length} ok`;
}

/**
 * Show the rows in a <ul>, changing only what changed.
 * @param {HTMLElement} list
 * @param {Row[]} rows
 */
export function showRows(list, rows) {
  for (const row of rows) {
    const item = list.querySelector(`[data-check="${row.id}"]`) ?? makeItem(list, row);
    if (!(item instanceof HTMLElement)) continue;
    item.dataset.verdict = row.verdict;
    write(item, '.verdict', WORDS[row.verdict]);
    write(item, '.value', row.value);
    write(item, '.advice', row.advice);
  }
}

/**
 * @param {HTMLElement} list
 * @param {Row} row
 */
function makeItem(list, row) {
  const item = document.createElement('li');
  item.dataset.check = row.id;
  for (const part of ['verdict', 'label', 'value', 'advice']) {
    const span = document.createElement('span');
    span.className = part;
    item.append(span);
  }
  write(item, '.label', row.label);
  list.append(item);
  return item;
}

/**
 * @param {HTMLElement} item
 * @param {string} selector
 * @param {string} text
 */
function write(item, selector, text) {
  const part = item.querySelector(selector);
  if (part && part.textContent !== text) part.textContent = text;
}

/**
 * @param {string} id
 * @param {string} label
 * @param {number | null} figure
 * @param {number[]} limits good below the first, usable below the second
 * @param {string} unit
 * @param {string} advice
 * @returns {Row}
 */
function graded(id, label, figure, limits, unit, advice) {
  const row = rowOf(id, label);
  if (figure === null) return judge(row, 'waiting', '–');
  const value = `${figure.toFixed(unit === '%' ? 1 : 0)} ${unit}`;
  if (figure < limits[0]) return judge(row, 'ok', value);
  return judge(row, figure < limits[1] ? 'warning' : 'failing', value, advice);
}

/**
 * @param {string} id
 * @param {string} label
 * @returns {Row}
 */
function rowOf(id, label) {
  return { id, label, verdict: 'waiting', value: '', advice: '' };
}

/**
 * @param {Row} row
 * @param {Verdict} verdict
 * @param {string} value
 * @param {string} [advice]
 * @returns {Row}
 */
function judge(row, verdict, value, advice = '') {
  return { ...row, verdict, value, advice };
}

/**
 * @param {string} before
 * @param {number} levelDb
 */
function inDb(before, levelDb) {
  return `${before}${levelDb.toFixed(0).replace('-', '−')} dB`;
}

/** @param {unknown[]} figures */
function sum(figures) {
  return figures.reduce((/** @type {number} */ total, each) => total + Number(each), 0);
}

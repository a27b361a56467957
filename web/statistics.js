// @ts-check
/** What WebRTC's statistics say about a call, as a few numbers. No DOM. */

/**
 * Null: not known (yet).
 * @typedef {object} Statistics
 * @property {number | null} roundTripMs
 * @property {number | null} lossPercent of the agent's sound, over the last WINDOW readings
 * @property {number | null} concealedPercent of the agent's sound, made up by the browser where none came in time
 * @property {number | null} jitterBufferMs how long the agent's sound waited before it was heard
 * @property {{width: number, height: number, perSecond: number} | null} picture what is sent
 */

/** Readings that loss, gaps and delay are taken over: at one a second, ten seconds. */
const WINDOW = 10;

/**
 * Counters of the agent's sound; all but the packets and the delay are in samples.
 * @typedef {object} Sound
 * @property {number} received packets
 * @property {number} lost packets
 * @property {number} played
 * @property {number} concealed
 * @property {number} delayS summed over all emitted
 * @property {number} emitted
 */

export class StatisticsReader {
  /** @type {Sound[]} */
  #window = [];
  /** @type {{frames: number, atMs: number} | null} */
  #lastPictures = null;

  /**
   * @param {Iterable<any>} reports the values of an RTCStatsReport
   * @returns {Statistics}
   */
  read(reports) {
    const all = [...reports];
    const sound = all.find((each) => each.type === 'inbound-rtp' && each.kind === 'audio');
    if (sound) this.#remember(sound);
    return {
      roundTripMs: roundTripMs(all),
      lossPercent: this.#lossPercent(),
      concealedPercent: this.#concealedPercent(),
      jitterBufferMs: this.#jitterBufferMs(),
      picture: this.#picture(all.find((each) => each.type === 'outbound-rtp' && each.kind === 'video')),
    };
  }

  /** Whether nothing of the agent's sound came between the last two readings: even its silence is sent. */
  get silent() {
    const [before, last] = this.#window.slice(-2);
    return last !== undefined && last.received > 0 && last.received === before.received;
  }

  /** @param {any} report */
  #remember(report) {
    this.#window.push({
      received: report.packetsReceived ?? 0,
      lost: report.packetsLost ?? 0,
      played: report.totalSamplesReceived ?? 0,
      concealed: report.concealedSamples ?? 0,
      delayS: report.jitterBufferDelay ?? 0,
      emitted: report.jitterBufferEmittedCount ?? 0,
    });
    if (this.#window.length > WINDOW + 1) this.#window.shift();
  }

  /**
   * How much a counter grew over the window.
   * @param {keyof Sound} counter
   */
  #growth(counter) {
    const last = this.#window.at(-1);
    return last && this.#window.length > 1 ? last[counter] - this.#window[0][counter] : 0;
  }

  #lossPercent() {
    const lost = Math.max(0, this.#growth('lost'));
    const sent = lost + this.#growth('received');
    return sent > 0 ? (100 * lost) / sent : null;
  }

  #concealedPercent() {
    const played = this.#growth('played');
    return played > 0 ? (100 * this.#growth('concealed')) / played : null;
  }

  #jitterBufferMs() {
    const emitted = this.#growth('emitted');
    return emitted > 0 ? (1000 * this.#growth('delayS')) / emitted : null;
  }

  /** @param {any} report */
  #picture(report) {
    if (!report?.frameWidth) return null;
    const now = { frames: report.framesSent ?? report.framesEncoded ?? 0, atMs: report.timestamp };
    const before = this.#lastPictures;
    this.#lastPictures = now;
    const elapsedS = before ? (now.atMs - before.atMs) / 1000 : 0;
    const perSecond = before && elapsedS > 0 ? (now.frames - before.frames) / elapsedS : 0;
    return { width: report.frameWidth, height: report.frameHeight, perSecond };
  }
}

/**
 * The receiver's own report where there is one, else the connectivity checks.
 * @param {any[]} reports
 */
function roundTripMs(reports) {
  const remote = reports.find((each) => each.type === 'remote-inbound-rtp' && each.roundTripTime > 0);
  if (remote) return 1000 * remote.roundTripTime;
  const pair = reports.find(
    (each) => each.type === 'candidate-pair' && each.nominated && each.currentRoundTripTime !== undefined,
  );
  return pair ? 1000 * pair.currentRoundTripTime : null;
}

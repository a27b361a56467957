// @ts-check
/**
 * Tells the server how far its speech has really been heard, so that after an interruption it knows
 * which words the user missed. No DOM.
 */

/** Between two reports. */
export const REPORT_MS = 100;
/** The end of a turn is still under way when the server has sent it: network and jitter buffer. */
export const TAIL_MS = 1_000;
/** Browsers forget a source this long after its last packet: then there is nothing to report. */
const OLDEST_MS = 10_000;

/** @typedef {{rtp_timestamp: number, at_ms: number}} Position */
/** @typedef {Pick<RTCRtpSynchronizationSource, 'timestamp' | 'rtpTimestamp'>} Source */

export class PlayoutReports {
  #read;
  #send;
  #timer = 0;
  #ending = 0;
  #lastRtp = -1;

  /**
   * @param {() => Source | undefined} read what the loudspeaker plays now
   * @param {(report: {type: string} & Position) => unknown} send
   */
  constructor(read, send) {
    this.#read = read;
    this.#send = send;
  }

  /**
   * Reports go out while the agent speaks and shortly after, never in its silence.
   * @param {boolean} speaks
   */
  speaking(speaks) {
    clearTimeout(this.#ending);
    if (speaks) this.#timer ||= setInterval(() => this.#report(), REPORT_MS);
    else if (this.#timer) this.#ending = setTimeout(() => this.finish(), TAIL_MS);
  }

  finish() {
    clearTimeout(this.#ending);
    clearInterval(this.#timer);
    this.#timer = 0;
  }

  #report() {
    const nowMs = performance.now();
    const position = positionOf(this.#read(), nowMs, performance.timeOrigin);
    if (!position) return;
    // The server sends packets in the agent's silence too. A position that stands still says that
    // none comes through, so that nothing more has sounded up to now.
    if (position.rtp_timestamp === this.#lastRtp) position.at_ms = tenths(nowMs);
    this.#lastRtp = position.rtp_timestamp;
    this.#send({ type: 'voice_agent.playout', ...position });
  }
}

/**
 * Where playout stood, and when on the scale of `performance.now()`. Null where the browser does not
 * tell positions (older Firefox and Safari): the server then estimates.
 *
 * Chromium and the standard count `timestamp` from 1970 by the page's own clock (timeOrigin + now);
 * others have counted from timeOrigin. On a scale that is neither, the position counts as of now:
 * wrong by one packet at the most.
 * @param {Source | undefined} source
 * @param {number} nowMs
 * @param {number} originMs
 * @returns {Position | null}
 */
export function positionOf(source, nowMs, originMs) {
  if (typeof source?.rtpTimestamp !== 'number') return null;
  const ages = [originMs + nowMs - source.timestamp, nowMs - source.timestamp];
  const ageMs = ages.find((age) => age >= 0 && age < OLDEST_MS) ?? 0;
  return { rtp_timestamp: source.rtpTimestamp, at_ms: tenths(nowMs - ageMs) };
}

/** @param {number} ms */
const tenths = (ms) => Math.round(10 * ms) / 10;

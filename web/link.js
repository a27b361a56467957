// @ts-check
/**
 * Whether the two sides of a call still reach each other; finds another way through the network when
 * they do not, as when a phone leaves the Wi-Fi: ICE is restarted, and the call goes on. No DOM.
 */

import { StatisticsReader } from './statistics.js';

/**
 * @typedef {object} LinkUser
 * @property {(statistics: import('./statistics.js').Statistics) => void} statistics once a second
 * @property {(whole: boolean) => void} changed false: the connection broke and is being waited for
 * @property {() => void} lost it did not come back in time
 * @property {(sdp: string) => Promise<string>} restart the server's answer to an offer that restarts
 */

export class Link {
  #pc;
  #limits;
  #user;
  #reader = new StatisticsReader();
  #whole = false;
  #restarting = false;
  #deadline = 0;
  #polling = 0;

  /**
   * @param {RTCPeerConnection} pc
   * @param {{graceMs: number, statisticsMs: number}} limits
   * @param {LinkUser} user
   */
  constructor(pc, limits, user) {
    this.#pc = pc;
    this.#limits = limits;
    this.#user = user;
  }

  /** The browser says that it stands. */
  connected() {
    clearTimeout(this.#deadline);
    this.#change(true);
    this.#polling ||= setInterval(() => this.#read(), this.#limits.statisticsMs);
  }

  /** The browser says that it broke, which it may do seconds after the last packet came. */
  broke() {
    clearTimeout(this.#deadline);
    this.#deadline = setTimeout(this.#user.lost, this.#limits.graceMs);
    this.#change(false);
    this.#restart();
  }

  finish() {
    clearTimeout(this.#deadline);
    clearInterval(this.#polling);
    this.#polling = 0;
  }

  async #read() {
    const report = await this.#pc.getStats();
    if (!this.#polling) return;
    this.#user.statistics(this.#reader.read(report.values()));
    const stands = this.#pc.connectionState === 'connected' && !this.#reader.silent;
    this.#change(stands);
    // Sooner than the browser would say so, and again while it does not help.
    if (!stands) await this.#restart();
  }

  /** Both sides find each other anew; what was agreed on stays. An offer that got no answer is sent again. */
  async #restart() {
    if (this.#restarting || !this.#polling) return;
    this.#restarting = true;
    try {
      const pc = this.#pc;
      if (pc.signalingState === 'stable') await pc.setLocalDescription(await pc.createOffer({ iceRestart: true }));
      const sdp = await this.#user.restart(pc.localDescription?.sdp ?? '');
      if (this.#polling) await pc.setRemoteDescription({ type: 'answer', sdp });
    } catch {
      // The network is not back yet, or the server has given up: the deadline knows what to say.
    } finally {
      this.#restarting = false;
    }
  }

  /** @param {boolean} whole */
  #change(whole) {
    if (whole === this.#whole) return;
    this.#whole = whole;
    this.#user.changed(whole);
  }
}

/**
 * A server that the browser does not understand is no reason not to call.
 * @param {RTCIceServer[]} iceServers
 */
export function openPeer(iceServers) {
  try {
    return new RTCPeerConnection({ iceServers });
  } catch {
    return new RTCPeerConnection();
  }
}

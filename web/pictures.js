// @ts-check
/** The pictures of a call: of the camera or of the screen, one at a time over one sender. No DOM. */

import { stop } from './capture.js';

/** @typedef {'camera' | 'screen'} PictureSource */
/** @typedef {{source: PictureSource, stream: MediaStream}} Picture */

/** The model looks at one or two pictures a second; more would only cost bandwidth. */
const RATE_HZ = 2;

export class Pictures {
  #sender;
  #tell;
  /** @type {Picture | null} */
  #shown = null;

  /**
   * The sender is offered from the start, so that nothing is renegotiated later.
   * @param {RTCPeerConnection} pc
   * @param {(picture: Picture | null) => void} tell what is shown from now on
   */
  constructor(pc, tell) {
    const sendEncodings = [{ maxFramerate: RATE_HZ }];
    this.#sender = pc.addTransceiver('video', { direction: 'sendonly', sendEncodings }).sender;
    this.#tell = tell;
  }

  get source() {
    return this.#shown?.source ?? null;
  }

  /**
   * Show this instead of what was shown; null shows nothing.
   * @param {Picture | null} picture
   */
  async show(picture) {
    stop(this.#shown?.stream);
    this.#shown = picture;
    const track = picture?.stream.getVideoTracks()[0] ?? null;
    // A bad network shall cost pictures, not their sharpness: the model reads what is on them.
    if (track) track.contentHint = 'detail';
    await this.#sender.replaceTrack(track);
    this.#tell(picture);
  }

  /**
   * Show nothing, if this is what is shown.
   * @param {PictureSource} source
   */
  async drop(source) {
    if (this.source === source) await this.show(null);
  }

  /** At the end of the call. */
  finish() {
    if (!this.#shown) return;
    stop(this.#shown.stream);
    this.#shown = null;
    this.#tell(null);
  }
}

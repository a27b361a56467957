// @ts-check
/** The lists of microphones, loudspeakers and cameras to choose from. */

import { fillSelect, rememberDevice } from './devices.js';
import { byId } from './stage.js';

/** @typedef {import('./devices.js').Kind} Kind */

export class DevicePickers {
  /** @type {[Kind, HTMLSelectElement][]} */
  #selects = [
    ['audioinput', select('microphone-select')],
    ['audiooutput', select('speaker-select')],
    ['videoinput', select('camera-select')],
  ];

  /** @param {Record<Kind, (deviceId: string) => unknown>} use what was chosen, '' for the system's default */
  constructor(use) {
    for (const [kind, element] of this.#selects) {
      element.addEventListener('change', () => {
        rememberDevice(kind, element.value);
        void use[kind](element.value);
      });
    }
    const canChoose = 'setSinkId' in HTMLMediaElement.prototype;
    byId('speaker-label').hidden = byId('speaker-select').hidden = !canChoose;
    navigator.mediaDevices?.addEventListener('devicechange', () => this.refresh());
    void this.refresh();
  }

  /** Look again at what there is: after the user's leave, browsers tell more. */
  async refresh() {
    const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
    for (const [kind, element] of this.#selects) fillSelect(element, kind, devices);
  }
}

/** @param {string} id */
function select(id) {
  return /** @type {HTMLSelectElement} */ (byId(id));
}

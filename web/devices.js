// @ts-check
/** Which microphone, loudspeaker and camera to use, remembered in this browser. */

/** @typedef {'audioinput' | 'audiooutput' | 'videoinput'} Kind */

/** @type {Record<Kind, string>} */
const NAMES = { audioinput: 'Microphone', audiooutput: 'Loudspeaker', videoinput: 'Camera' };

/**
 * The id chosen last, or '' for the system's default.
 * @param {Kind} kind
 */
export function rememberedDevice(kind) {
  return recall(kind) ?? '';
}

/**
 * @param {Kind} kind
 * @param {string} deviceId '' forgets
 */
export function rememberDevice(kind, deviceId) {
  remember(kind, deviceId);
}

/**
 * A choice made on this page before, or null.
 * @param {string} name
 */
export function recall(name) {
  return storage()?.getItem(`voice-agent.${name}`) ?? null;
}

/**
 * @param {string} name
 * @param {string} value
 */
export function remember(name, value) {
  storage()?.setItem(`voice-agent.${name}`, value);
}

/** Null where the browser keeps nothing for this page: then a choice lasts as long as the page. */
function storage() {
  try {
    return localStorage;
  } catch (error) {
    if (error instanceof DOMException) return null;
    throw error;
  }
}

/**
 * Fill a <select> with the devices of its kind, keeping the remembered one chosen where it is
 * plugged in. Browsers hide ids and names until the user has allowed a device: then only
 * "System default" is offered.
 * @param {HTMLSelectElement} select
 * @param {Kind} kind
 * @param {MediaDeviceInfo[]} devices of all kinds
 */
export function fillSelect(select, kind, devices) {
  const known = devices.filter((each) => each.kind === kind && each.deviceId && each.deviceId !== 'default');
  const options = known.map((each, index) => new Option(each.label || `${NAMES[kind]} ${index + 1}`, each.deviceId));
  select.replaceChildren(new Option('System default', ''), ...options);
  const wanted = rememberedDevice(kind);
  select.value = known.some((each) => each.deviceId === wanted) ? wanted : '';
}

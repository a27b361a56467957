// @ts-check
/** Asks the user for the server's key. */

import { byId } from './stage.js';

/**
 * @param {boolean} wrong what was given before is not accepted
 * @param {() => unknown} given called when there is one: now much may work that did not before
 * @returns {Promise<string>} '' where they have none, or would not say
 */
export function askForKey(wrong, given) {
  const dialog = /** @type {HTMLDialogElement} */ (byId('key-dialog'));
  const input = /** @type {HTMLInputElement} */ (byId('key-input'));
  const say = (/** @type {string} */ text) => {
    input.setAttribute('aria-invalid', String(text !== ''));
    byId('key-note').textContent = text;
  };
  if (!byId('engine').dataset.engine) byId('engine').textContent = 'key needed';
  input.value = '';
  say(wrong ? 'The server does not accept that key.' : '');
  dialog.returnValue = '';
  dialog.showModal();
  byId('key-later').onclick = () => dialog.close('');
  byId('key-form').onsubmit = (event) => {
    if (input.value.trim()) return;
    event.preventDefault();
    say('Enter a key');
    input.focus();
  };
  return new Promise((resolve) => {
    const answer = () => {
      const key = dialog.returnValue === 'use' ? input.value.trim() : '';
      resolve(key);
      if (key) setTimeout(given);
    };
    dialog.addEventListener('close', answer, { once: true });
  });
}

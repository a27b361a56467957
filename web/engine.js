// @ts-check
/** Which engine answers, and what there is to say about it before a call. */

import { CallProblem } from './problems.js';
import { byId } from './stage.js';

/** @typedef {import('./signalling.js').EngineInfo} EngineInfo */

const ECHO_ENGINE = 'echo';

/**
 * Ask, and show it.
 * @param {import('./signalling.js').Signalling} signalling
 * @returns {Promise<EngineInfo | null>} null where the server could not be asked
 */
export async function showEngine(signalling) {
  const badge = byId('engine');
  try {
    const engine = await signalling.defaultEngine();
    badge.textContent = engine.id === ECHO_ENGINE ? 'echo engine' : engine.id;
    if (engine.id === ECHO_ENGINE) showEcho(engine.reason);
    byId('captions-only').hidden = !captionsOnly(engine);
    badge.dataset.engine = engine.id;
    return engine;
  } catch (error) {
    if (!(error instanceof CallProblem)) throw error;
    badge.textContent = error.code === 'key-needed' ? 'key needed' : 'server not reachable';
    return null;
  }
}

/** Whether it says that it has no voice. @param {EngineInfo} engine */
export function captionsOnly(engine) {
  return engine.abilities.speech === false;
}

/** @param {string} reason why it is not the model that answers */
function showEcho(reason) {
  byId('echo-notice').hidden = false;
  byId('echo-reason').hidden = !reason;
  byId('echo-reason').textContent = `Why this engine answers: ${reason}.`;
  byId('details').toggleAttribute('open', true);
}

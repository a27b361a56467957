// @ts-check
/**
 * Everything that can go wrong with a call, by code, in the words that the user reads: what
 * happened, what to do about it, and what the button beside it says. No DOM.
 */

/**
 * @typedef {'microphone-denied' | 'microphone-missing' | 'microphone-busy' | 'camera-denied'
 *   | 'camera-missing' | 'screen-denied' | 'screen-missing' | 'insecure-context' | 'server-gone'
 *   | 'no-slot' | 'agent-starting' | 'agent-restarted' | 'connection-failed' | 'call-refused' | 'key-needed' | 'browser-too-old' | 'server-error'} ProblemCode
 * @typedef {{title: string, advice: string, action: string}} Wording
 */

const DEFAULT_RETRY_S = 10;

/** What went wrong; `detail` is the far side's own words, `retryAfterS` 0 where none was given. */
export class CallProblem extends Error {
  /**
   * @param {ProblemCode} code
   * @param {{detail?: string, retryAfterS?: number, cause?: unknown}} [more]
   */
  constructor(code, more = {}) {
    super(more.detail || code, { cause: more.cause });
    this.name = 'CallProblem';
    this.code = code;
    this.detail = more.detail ?? '';
    this.retryAfterS = more.retryAfterS ?? 0;
  }
}

/** @type {Record<ProblemCode, Wording>} */
const WORDINGS = {
  'microphone-denied': {
    title: 'The microphone is blocked',
    advice:
      'Allow the microphone for this page (the icon beside the address, or your system’s privacy settings).',
    action: 'Call again',
  },
  'microphone-missing': {
    title: 'No microphone was found',
    advice: 'Plug one in or switch it on, and pick it under “Devices”.',
    action: 'Call again',
  },
  'microphone-busy': {
    title: 'The microphone is in use',
    advice: 'Another program holds it. Close that program, or pick another microphone under “Devices”.',
    action: 'Call again',
  },
  'camera-denied': {
    title: 'The camera is blocked',
    advice: 'The call goes on without it. Allow the camera for this page, then switch it on again.',
    action: 'OK',
  },
  'camera-missing': {
    title: 'No camera could be opened',
    advice: 'The call goes on without it. Check that one is plugged in and that no other program uses it.',
    action: 'OK',
  },
  'screen-denied': {
    title: 'The screen may not be shared',
    advice:
      'The call goes on without it. Allow this browser to record the screen in your system’s privacy settings, then share again.',
    action: 'OK',
  },
  'screen-missing': {
    title: 'The screen could not be shared',
    advice: 'The call goes on without it. Share again, and choose another window or the whole screen.',
    action: 'OK',
  },
  'insecure-context': {
    title: 'This address is not secure',
    advice: 'Browsers lend the microphone only to https:// pages and to http://localhost. Open this page at such an address.',
    action: 'OK',
  },
  'server-gone': {
    title: 'The server cannot be reached',
    advice: 'Check that the server is running and that you are online, then call again.',
    action: 'Call again',
  },
  'no-slot': {
    title: 'No place is free',
    advice: 'This server can take no more calls right now.',
    action: 'Try again',
  },
  'agent-starting': {
    title: 'The agent is starting',
    advice: 'The server is there, but the agent behind it is not ready yet.',
    action: 'Try again',
  },
  'agent-restarted': {
    title: 'The agent had to restart',
    advice: 'That ended this call. Call again in a moment.',
    action: 'Call again',
  },
  'connection-failed': {
    title: 'Sound could not get through',
    advice:
      'The server answered, but no media connection came about in 10 seconds. A firewall or VPN probably blocks UDP: try another network.',
    action: 'Call again',
  },
  'call-refused': {
    title: 'The server refused the call',
    advice: 'Check the server’s settings and log, then call again.',
    action: 'Call again',
  },
  'key-needed': {
    title: 'This server asks for a key',
    advice: 'Ask whoever runs this server for a key, then call again and enter it.',
    action: 'Call again',
  },
  'browser-too-old': {
    title: 'This browser cannot make calls',
    advice: 'It has no WebRTC, or it is switched off. Use a current Chrome, Edge, Firefox or Safari.',
    action: 'OK',
  },
  'server-error': {
    title: 'The server reported an error',
    advice: 'The call is over.',
    action: 'Call again',
  },
};

/** Problems after which the button starts another call. @type {ReadonlySet<ProblemCode>} */
const RETRIABLE = new Set(
  /** @type {ProblemCode[]} */ (Object.keys(WORDINGS)).filter((code) => WORDINGS[code].action !== 'OK'),
);

/** Problems that the far side says more about. @type {ReadonlySet<ProblemCode>} */
const QUOTED = new Set(['call-refused', 'server-error']);

/** Problems that may be over when the server says to ask again. @type {ReadonlySet<ProblemCode>} */
const AWAITED = new Set(['no-slot', 'agent-starting']);

/** @param {CallProblem} problem */
export function canRetry(problem) {
  return RETRIABLE.has(problem.code);
}

/**
 * The words for a problem.
 * @param {CallProblem} problem
 * @param {boolean} callGoesOn then there is nothing to call again
 * @returns {Wording}
 */
export function describe(problem, callGoesOn) {
  const words = WORDINGS[problem.code];
  const parts = [problem.code === 'server-error' && callGoesOn ? 'The call goes on.' : words.advice];
  // Of the wait no more is known than that the server asks for it: often it is a setting.
  if (AWAITED.has(problem.code)) parts.push(`Try again in ${problem.retryAfterS} ${problem.retryAfterS === 1 ? 'second' : 'seconds'}.`);
  if (problem.detail && QUOTED.has(problem.code)) {
    parts.unshift(`It says: “${problem.detail}”`);
  }
  return { title: words.title, advice: parts.join(' '), action: callGoesOn ? 'OK' : words.action };
}

/** What was thrown while a call began. @param {unknown} error */
export function asProblem(error) {
  if (error instanceof CallProblem) return error;
  return new CallProblem('connection-failed', { detail: String(error), cause: error });
}

/**
 * What an `error` event of the server means that nobody here had asked for.
 * @param {any} error
 */
export function eventProblem(error) {
  if (error?.code === 'worker_lost') return new CallProblem('agent-restarted', { retryAfterS: DEFAULT_RETRY_S });
  return new CallProblem('server-error', { detail: error?.message });
}

/** @param {unknown} error */
function nameOf(error) {
  return error instanceof Error || error instanceof DOMException ? error.name : '';
}

/**
 * What a refused `getUserMedia({audio})` means.
 * @param {unknown} error
 */
export function microphoneProblem(error) {
  const name = nameOf(error);
  if (name === 'NotAllowedError' || name === 'SecurityError') {
    return new CallProblem('microphone-denied', { cause: error });
  }
  if (name === 'NotFoundError' || name === 'OverconstrainedError') {
    return new CallProblem('microphone-missing', { cause: error });
  }
  return new CallProblem('microphone-busy', { cause: error });
}

/**
 * What a refused `getUserMedia({video})` means.
 * @param {unknown} error
 */
export function cameraProblem(error) {
  const denied = ['NotAllowedError', 'SecurityError'].includes(nameOf(error));
  return new CallProblem(denied ? 'camera-denied' : 'camera-missing', { cause: error });
}

/**
 * What a refused `getDisplayMedia()` means; null where the user thought better of it, which needs no
 * words. Browsers tell that from the system's refusal by their message alone.
 * @param {unknown} error
 */
export function screenProblem(error) {
  if (nameOf(error) !== 'NotAllowedError') return new CallProblem('screen-missing', { cause: error });
  return /system|polic/i.test(String(error)) ? new CallProblem('screen-denied', { cause: error }) : null;
}

/** What the server says while no engine is there; its code is that of a server whose places are taken. */
const STARTING = /the engine is (starting|down)/i;

/**
 * What an HTTP answer other than 201 means.
 * @param {Response} response
 */
export async function refusalProblem(response) {
  const detail = messageIn(await response.text(), response.status);
  if (response.status === 503) {
    const retryAfterS = Math.ceil(Number(response.headers.get('Retry-After'))) || DEFAULT_RETRY_S;
    return new CallProblem(STARTING.test(detail) ? 'agent-starting' : 'no-slot', { detail, retryAfterS });
  }
  if (response.status === 401) return new CallProblem('key-needed', { detail });
  if (response.status === 429) {
    return new CallProblem('no-slot', { detail, retryAfterS: Math.ceil(Number(response.headers.get('Retry-After'))) || DEFAULT_RETRY_S });
  }
  return new CallProblem('call-refused', { detail });
}

/**
 * The message of an OpenAI-shaped error body, or the bare status.
 * @param {string} body
 * @param {number} status
 */
function messageIn(body, status) {
  try {
    const message = JSON.parse(body)?.error?.message;
    if (typeof message === 'string' && message) return message;
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
  return `HTTP status ${status}`;
}

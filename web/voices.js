// @ts-check
/** The voices of the server over HTTP: listed, checked, added, deleted, listened to. No DOM. */

/**
 * @typedef {object} Voice
 * @property {string} id small letters, digits, dashes
 * @property {string} name
 * @property {boolean} built_in cannot be deleted
 * @property {'ready' | 'preparing' | 'failed'} status
 * @property {string | null} [error] why it failed
 * @property {string | null} [language]
 * @property {string[]} [notes] sentences about its recording
 *
 * @typedef {object} Finding
 * @property {string} code
 * @property {'refused' | 'warning' | 'note'} severity
 * @property {string} message
 *
 * @typedef {object} Report what the server measured in a recording
 * @property {boolean} accepted
 * @property {number} duration_s
 * @property {Finding[]} findings
 *
 * @typedef {object} NewVoice
 * @property {string} name
 * @property {Blob} recording
 * @property {string} fileName
 * @property {string} language '' where it is none of those offered
 * @property {string} consent what the user declared
 *
 * @typedef {object} Sending
 * @property {AbortSignal} signal
 * @property {(share: number) => void} onProgress 0 to 1 of what is sent
 */

const ANSWER_TIMEOUT_MS = 20_000;
/** Until the whole sample has come: a busy engine takes its time. */
const SPEECH_TIMEOUT_MS = 60_000;

/** Something about voices that did not work; the message says what, and what to do. */
export class VoiceProblem extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, files?: string, cause?: unknown}} [more] status 0: there was no answer;
   *   files: which can be used, where this one cannot
   */
  constructor(message, { status = 0, files = '', cause } = {}) {
    super(message, { cause });
    this.status = status;
    this.files = files;
  }
}

export class VoicesApi {
  #key;

  /**
   * @param {URL | string} baseUrl where the server's `v1/` lives
   * @param {import('./page_key.js').PageKey} key
   */
  constructor(baseUrl, key) {
    this.#key = key;
    this.url = new URL('v1/audio/voices', baseUrl);
    this.speechUrl = new URL('v1/audio/speech', baseUrl);
  }

  /**
   * All voices, those built in first.
   * @returns {Promise<Voice[]>}
   * @throws {VoiceProblem}
   */
  async list() {
    const response = await this.#reach(this.url, {});
    const data = parse(await textOf(response))?.data;
    if (!Array.isArray(data)) throw new VoiceProblem('The server’s list of voices makes no sense.');
    return [...data.filter((each) => each.built_in), ...data.filter((each) => !each.built_in)];
  }

  /**
   * What the server thinks of a recording; it keeps nothing of it.
   * @param {Blob} recording
   * @param {string} fileName
   * @param {Sending} sending
   * @returns {Promise<Report>}
   * @throws {VoiceProblem} or an AbortError
   */
  check(recording, fileName, sending) {
    const form = new FormData();
    form.set('audio_sample', recording, fileName);
    return this.#post(new URL(`${this.url}/check`), form, sending);
  }

  /**
   * @param {NewVoice} voice
   * @param {Sending} sending
   * @returns {Promise<Voice>} which may still have to be prepared
   * @throws {VoiceProblem} or an AbortError
   */
  add({ name, recording, fileName, language, consent }, sending) {
    const form = new FormData();
    form.set('name', name);
    form.set('consent', consent);
    if (language) form.set('language', language);
    form.set('audio_sample', recording, fileName);
    return this.#post(this.url, form, sending);
  }

  /**
   * Delete one; one that is gone already is as good.
   * @param {string} id
   * @throws {VoiceProblem}
   */
  async remove(id) {
    try {
      await this.#reach(new URL(`${this.url}/${encodeURIComponent(id)}`), { method: 'DELETE' });
    } catch (error) {
      if (!(error instanceof VoiceProblem) || error.status !== 404) throw error;
    }
  }

  /**
   * @param {URL} url
   * @param {RequestInit} request
   * @param {number} [timeoutMs]
   */
  async #reach(url, request, timeoutMs = ANSWER_TIMEOUT_MS) {
    /** @type {Response} */
    let response;
    try {
      response = await this.#key.fetch(url, request, timeoutMs);
    } catch (error) {
      throw isAbort(error) ? error : lost(error);
    }
    if (!response.ok) throw refused(response.status, await textOf(response));
    return response;
  }

  /**
   * @param {URL} url
   * @param {FormData} form
   * @param {Sending} sending
   * @returns {Promise<any>} the JSON of the answer
   */
  async #post(url, form, sending) {
    const { status, responseText } = await this.#key.attempt((headers) => send(url, form, headers, sending), true);
    if (status >= 300) throw refused(status, responseText);
    const answer = parse(responseText);
    if (!answer) throw new VoiceProblem('The server’s answer makes no sense. Is there a proxy in between?');
    return answer;
  }

  /**
   * Have a text read aloud.
   * @param {{model: string, voice: string, input: string, language: string}} speech
   * @param {AbortSignal} signal
   * @returns {Promise<Blob>}
   * @throws {VoiceProblem} or an AbortError
   */
  async speak(speech, signal) {
    const headers = { 'Content-Type': 'application/json' };
    const body = JSON.stringify({ ...speech, response_format: 'mp3' });
    const response = await this.#reach(this.speechUrl, { method: 'POST', headers, body, signal }, SPEECH_TIMEOUT_MS);
    try {
      return await response.blob();
    } catch (error) {
      throw isAbort(error) ? error : lost(error);
    }
  }
}

/** Whether it was given up on purpose. @param {unknown} error */
export function isAbort(error) {
  return error instanceof DOMException && error.name === 'AbortError';
}

/** @param {Response} response */
async function textOf(response) {
  try {
    return await response.text();
  } catch (error) {
    throw isAbort(error) ? error : lost(error);
  }
}

/**
 * Send a form, saying how far it is: `fetch` cannot.
 * @param {URL} url
 * @param {FormData} form
 * @param {Record<string, string>} headers
 * @param {Sending} sending
 * @returns {Promise<XMLHttpRequest>} that was answered
 */
function send(url, form, headers, { signal, onProgress }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open('POST', url);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => onProgress(total ? loaded / total : 0);
    request.onerror = () => reject(lost(null));
    request.onabort = () => reject(new DOMException('given up', 'AbortError'));
    request.onload = () => resolve(request);
    signal.addEventListener('abort', () => request.abort());
    if (signal.aborted) reject(new DOMException('given up', 'AbortError'));
    else request.send(form);
  });
}

/** @param {unknown} cause */
function lost(cause) {
  if (cause instanceof DOMException && cause.name === 'TimeoutError') {
    return new VoiceProblem('The server takes too long to answer. It may be busy: try again in a while.', { cause });
  }
  return new VoiceProblem('The server cannot be reached. Check that it is running and that you are online, then try again.', { cause });
}

/**
 * @param {number} status
 * @param {string} body OpenAI's error object, if it is one
 */
function refused(status, body) {
  const error = parse(body)?.error ?? {};
  const message = sentence(String(error.message ?? '') || `The server answers with HTTP status ${status}.`);
  const [what, files] = message.split('; supported are ');
  if (status === 401) return new VoiceProblem('This server asks for a key. Ask whoever runs it for one, then try again and enter it.', { status });
  // All that can be used is too much to be read where one file is refused.
  if (error.code === 'unsupported_media' && files) return new VoiceProblem(sentence(`${what}, no recording`), { status, files });
  if (status === 503 || status === 429) return new VoiceProblem(`${message} Try again in a few seconds.`, { status });
  return new VoiceProblem(message, { status });
}

/**
 * As a sentence of its own.
 * @param {string} text
 */
export function sentence(text) {
  const whole = text.trim();
  if (!whole) return '';
  return whole[0].toUpperCase() + whole.slice(1) + (/[.!?。！？…]$/.test(whole) ? '' : '.');
}

/**
 * @param {string} body
 * @returns {any} null where it is no JSON
 */
function parse(body) {
  try {
    return JSON.parse(body);
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}

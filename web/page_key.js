// @ts-check
/**
 * What the page uses the server's API with, where that asks for a key: a secret that the server
 * gives to its own page, or else a key that the user enters. No DOM.
 */

const ANSWER_TIMEOUT_MS = 10_000;
/** Of a secret's life it is used for so much; then comes the next one. */
const USED_SHARE = 0.8;
/** In this tab alone, until it is closed. */
const STORED = 'voice-agent-key';
/** It says so, or knows of no secrets. */
const NONE_NEEDED = new Set([204, 404, 405]);
const NEEDS_KEY = 'page_needs_key';

/** @typedef {'' | 'secret' | 'own'} Kind none is needed, the page's, or the user's */

export class PageKey {
  #url;
  #askUser;
  #value = '';
  /** @type {Kind} */
  #kind = '';
  /** When to ask for the next one; 0 before the first. */
  #dueMs = 0;
  /** Several requests at a time wait for one answer. @type {Promise<void> | null} */
  #asking = null;
  /** The user has no key, or would not say: not to be asked again but for what they do. */
  #declined = false;

  /**
   * @param {URL | string} baseUrl where `page/secret` lives
   * @param {(wrong: boolean) => Promise<string>} [askUser] for their key; '' where they have none.
   *   `wrong`: what they gave before is not accepted
   */
  constructor(baseUrl, askUser = () => Promise.resolve('')) {
    this.#url = new URL('page/secret', baseUrl);
    this.#askUser = askUser;
  }

  /**
   * As `fetch`, with the key; tries again with a new one where the server does not accept it.
   * @param {URL | string} url of this server's API
   * @param {RequestInit} request whose body can be sent twice
   * @param {number} [timeoutMs] for each time; the user has all the time to find their key
   */
  async fetch(url, request, timeoutMs) {
    return this.attempt((headers) => send(url, request, headers, timeoutMs), isUsersDoing(request));
  }

  /**
   * Do what needs a key, and again where it was refused for want of a good one.
   * @template {{status: number}} Reply
   * @param {(headers: Record<string, string>) => Promise<Reply>} work
   * @param {boolean} byUser whether the user waits for it, who may then be asked for a key
   * @returns {Promise<Reply>}
   */
  async attempt(work, byUser) {
    if (byUser) this.#declined = false;
    if (Date.now() >= this.#dueMs) await this.#renew(false);
    for (let again = false; ; again = true) {
      const used = this.#value;
      const reply = await work(this.headers());
      // Users may mistype; a secret that is refused twice will not get better.
      if (reply.status !== 401 || (again && this.#kind !== 'own')) return reply;
      // Somebody else may have got a new one meanwhile.
      if (this.#value === used) await this.#renew(true);
      if (this.#value === used) return reply;
    }
  }

  /** For a request that cannot wait. @returns {Record<string, string>} */
  headers() {
    return this.#value ? { Authorization: `Bearer ${this.#value}` } : {};
  }

  /** @param {boolean} refused the one that we have is not accepted */
  #renew(refused) {
    this.#asking ??= this.#ask(refused).finally(() => (this.#asking = null));
    return this.#asking;
  }

  /** @param {boolean} refused */
  async #ask(refused) {
    const wrong = refused && this.#kind === 'own';
    if (wrong) forget();
    const response = await this.#request();
    // Where the server cannot be reached the request itself will show it.
    if (!response) return;
    if (NONE_NEEDED.has(response.status)) return this.#take('', '', Infinity);
    const answer = await response.json().catch(() => null);
    if (response.ok && answer?.value) return this.#take(answer.value, 'secret', Date.now() + answer.seconds * 1000 * USED_SHARE);
    if (answer?.error?.code === NEEDS_KEY) await this.#useOwn(wrong);
  }

  async #request() {
    const headers = this.#kind === 'secret' ? this.headers() : {};
    try {
      return await fetch(this.#url, { method: 'POST', headers, signal: AbortSignal.timeout(ANSWER_TIMEOUT_MS) });
    } catch (error) {
      return null;
    }
  }

  /** @param {boolean} wrong */
  async #useOwn(wrong) {
    const stored = recall();
    if (stored) return this.#take(stored, 'own', Infinity);
    if (this.#declined) return;
    const key = await this.#askUser(wrong);
    this.#declined = !key;
    if (key) keep(key);
    this.#take(key, key ? 'own' : '', Infinity);
  }

  /**
   * @param {string} value
   * @param {Kind} kind
   * @param {number} dueMs
   */
  #take(value, kind, dueMs) {
    this.#value = value;
    this.#kind = kind;
    this.#dueMs = dueMs;
  }
}

/**
 * @param {URL | string} url
 * @param {RequestInit} request
 * @param {Record<string, string>} key the header that holds it
 * @param {number} [timeoutMs]
 */
function send(url, { signal, ...request }, key, timeoutMs) {
  const headers = new Headers(request.headers);
  for (const [name, value] of Object.entries(key)) headers.set(name, value);
  const ends = signal ? [signal] : [];
  if (timeoutMs) ends.push(AbortSignal.timeout(timeoutMs));
  return fetch(url, { ...request, headers, signal: AbortSignal.any(ends) });
}

/** What the page does by itself only reads. @param {RequestInit} request */
function isUsersDoing({ method = 'GET' }) {
  return method !== 'GET';
}

/** Storage may be forbidden: then the key is asked for on each visit. */
function recall() {
  try {
    return sessionStorage.getItem(STORED) ?? '';
  } catch (error) {
    if (error instanceof DOMException) return '';
    throw error;
  }
}

/** @param {string} key */
function keep(key) {
  try {
    sessionStorage.setItem(STORED, key);
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
  }
}

function forget() {
  try {
    sessionStorage.removeItem(STORED);
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
  }
}

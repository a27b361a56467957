// @ts-check
/** The HTTP side of a call: offer, hang-up, and which engine answers. No DOM. */

import { CallProblem, refusalProblem } from './problems.js';

/** @typedef {import('./page_key.js').PageKey} PageKey */

/**
 * What an engine can do; what it does not name, it cannot.
 * @typedef {object} Abilities
 * @property {boolean} [duplex] listens while it speaks
 * @property {boolean} [speech] has a voice; without one it answers in captions
 * @property {boolean} [chat] answers turn by turn, without a call
 * @property {boolean} [understands] there is a model that follows a prompt; where the server does not
 *   say: one that chats, or has a prompt of its own
 * @property {boolean} [camera]
 * @property {boolean} [typed_text]
 * @property {boolean} [pictures] that are attached, not filmed
 * @property {boolean} [transcription]
 * @property {boolean} [text_to_speech] reads texts aloud, and its chat answers
 * @property {string[]} [voices] ids of those that were there when it started
 * @property {string[]} [languages]
 *
 * `prompts` are the engine's own system prompts by language, where the server tells them.
 * `mayChangeVoices`, `mayChat`: what the page's key is good for.
 * @typedef {{id: string, abilities: Abilities, reason: string, prompts: Record<string, string>, mayChangeVoices: boolean, mayChat: boolean}} EngineInfo
 */

const ANSWER_TIMEOUT_MS = 20_000;
/** A broken connection has few seconds to come back. */
const RESTART_TIMEOUT_MS = 2_000;
/** Longer the caller does not wait for servers that the call may well do without. */
const SERVERS_TIMEOUT_MS = 1_000;

export class Signalling {
  #key;

  /**
   * @param {URL | string} baseUrl where `v1/` lives: the folder of the page, usually
   * @param {PageKey} key
   */
  constructor(baseUrl, key) {
    this.#key = key;
    this.callsUrl = new URL('v1/realtime/calls', baseUrl);
    this.serversUrl = new URL('v1/realtime/ice-servers', baseUrl);
    this.chatUrl = new URL('v1/chat/completions', baseUrl);
    this.modelsUrl = new URL('v1/models', baseUrl);
  }

  /**
   * Ask for a call.
   * @param {string} sdp the offer; it needs no candidates
   * @param {Record<string, unknown>} [session] settings that hold from the start
   * @returns {Promise<{sdp: string, callUrl: URL | null}>}
   * @throws {CallProblem} server-gone, no-slot or call-refused
   */
  async offer(sdp, session) {
    const response = await this.#reach(this.callsUrl, { method: 'POST', ...offerBody(sdp, session) });
    if (response.status !== 201) throw await refusalProblem(response);
    return { sdp: await response.text(), callUrl: this.#callUrl(response.headers.get('Location')) };
  }

  /**
   * Ask for another way through the network.
   * @param {URL} callUrl
   * @param {string} sdp an offer that restarts ICE and changes nothing else
   * @returns {Promise<string>} its answer
   * @throws {CallProblem} server-gone or call-refused
   */
  async restart(callUrl, sdp) {
    const request = { method: 'PATCH', headers: { 'Content-Type': 'application/sdp' }, body: sdp };
    const response = await this.#reach(callUrl, request, RESTART_TIMEOUT_MS);
    if (!response.ok) throw await refusalProblem(response);
    return response.text();
  }

  /**
   * The STUN and TURN servers that help to reach this server; none where it does not say.
   * @returns {Promise<RTCIceServer[]>}
   */
  async iceServers() {
    try {
      const response = await this.#reach(this.serversUrl, {}, SERVERS_TIMEOUT_MS);
      return response.ok ? (await response.json()).ice_servers : [];
    } catch {
      return [];
    }
  }

  /**
   * End the call at the server; outlives the page, and nobody waits for the answer: a call that is
   * gone already answers 404, and one that hears nothing ends by the server's own watchdog.
   * @param {URL} callUrl
   */
  hangUp(callUrl) {
    fetch(`${callUrl}/hangup`, { method: 'POST', keepalive: true, headers: this.#key.headers() }).catch(() => undefined);
  }

  /**
   * The engine that answers calls.
   * @returns {Promise<EngineInfo>}
   * @throws {CallProblem} server-gone or call-refused
   */
  async defaultEngine() {
    const response = await this.#reach(this.modelsUrl, {});
    if (!response.ok) throw await refusalProblem(response);
    const { data } = await response.json();
    const model = data.find((/** @type {any} */ each) => each.voice_agent?.default) ?? data[0];
    if (!model) throw new CallProblem('call-refused', { detail: 'The server lists no engine.' });
    const extension = model.voice_agent ?? {};
    const { abilities = {}, reason = '', default_instructions: prompts = {}, may = {} } = extension;
    const { change_voices: mayChangeVoices = true, chat: mayChat = true } = may;
    const understands = abilities.chat === true || Object.keys(prompts).length > 0;
    return { id: model.id, abilities: { understands, ...abilities }, reason, prompts, mayChangeVoices, mayChat };
  }

  /**
   * @param {URL} url
   * @param {RequestInit} request
   * @param {number} [timeoutMs]
   */
  async #reach(url, request, timeoutMs = ANSWER_TIMEOUT_MS) {
    try {
      return await this.#key.fetch(url, request, timeoutMs);
    } catch (error) {
      throw new CallProblem('server-gone', { cause: error });
    }
  }

  /**
   * By the id alone, so that a proxy may serve the page under a prefix that `Location` lacks.
   * @param {string | null} location
   */
  #callUrl(location) {
    const id = location?.split('/').filter(Boolean).pop();
    return id ? new URL(`${this.callsUrl}/${id}`) : null;
  }
}

/**
 * @param {string} sdp
 * @param {Record<string, unknown>} [session]
 * @returns {RequestInit}
 */
function offerBody(sdp, session) {
  if (!session) return { headers: { 'Content-Type': 'application/sdp' }, body: sdp };
  const form = new FormData();
  form.set('sdp', sdp);
  form.set('session', JSON.stringify({ type: 'realtime', ...session }));
  return { body: form };
}

// @ts-check
/** One answer of the turn-based chat, piece by piece, as server-sent events over fetch. No DOM. */

/**
 * @typedef {import('./page_key.js').PageKey} PageKey
 * @typedef {{text: string, reasoning: boolean, sound: string}} Piece
 *   `sound` is the next of it as base64 of 16 bit samples at 24 kHz, where it was asked for
 * @typedef {{reason: string, voiced: boolean}} End
 *   `reason` is stop, length, or '' where nobody said; not `voiced` is one whose voice failed on the way
 */

const DEFAULT_RETRY_S = 5;
/** Of one event; more is no event any more. */
const MAX_EVENT_CHARACTERS = 1_000_000;

/** Why there is no (whole) answer; `advice` says what to do. */
export class ChatProblem extends Error {
  /**
   * @param {string} message
   * @param {string} advice
   * @param {unknown} [cause]
   */
  constructor(message, advice, cause) {
    super(message, { cause });
    this.advice = advice;
  }
}

/**
 * Ask; the pieces come as they are made. Leaving the loop, or aborting, gives the answer up.
 * @param {URL} url
 * @param {object} body of the request
 * @param {AbortSignal} signal
 * @param {PageKey} key
 * @returns {AsyncGenerator<Piece, End>}
 * @throws {ChatProblem}
 */
export async function* streamAnswer(url, body, signal, key) {
  const response = await ask(url, body, signal, key);
  let reason = '';
  let voiced = true;
  for await (const data of events(response)) {
    if (data === '[DONE]') return { reason, voiced };
    const chunk = parse(data);
    if (chunk.error) throw new ChatProblem(chunk.error.message ?? 'The engine failed.', 'Send it again, or start a new chat.');
    const choice = chunk.choices?.[0] ?? {};
    const { content, audio, reasoning_content: thought = choice.delta?.reasoning } = choice.delta ?? {};
    if (thought) yield { text: thought, reasoning: true, sound: '' };
    if (content || audio?.data) yield { text: content ?? '', reasoning: false, sound: audio?.data ?? '' };
    reason = choice.finish_reason ?? reason;
    if (choice.delta?.voice_agent?.voiced === false) voiced = false;
  }
  if (!reason) throw new ChatProblem('The answer broke off.', 'The connection to the server was cut: send it again.');
  return { reason, voiced };
}

/**
 * @param {URL} url
 * @param {object} body
 * @param {AbortSignal} signal
 * @param {PageKey} key
 */
async function ask(url, body, signal, key) {
  const headers = { 'Content-Type': 'application/json', Accept: 'text/event-stream' };
  /** @type {Response} */
  let response;
  try {
    response = await key.fetch(url, { method: 'POST', headers, body: JSON.stringify(body), signal });
  } catch (error) {
    throw lost(error);
  }
  if (!response.ok) throw await refused(response);
  return response;
}

/**
 * The data of each event.
 * @param {Response} response
 */
async function* events(response) {
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  if (!reader) return;
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const whole = (rest + value).replaceAll('\r\n', '\n').split('\n\n');
      rest = whole.pop() ?? '';
      if (rest.length > MAX_EVENT_CHARACTERS) throw new ChatProblem('The server’s answer makes no sense.', 'Is there a proxy in between? Reload the page.');
      for (const event of whole) yield* dataOf(event);
    }
  } catch (error) {
    throw error instanceof ChatProblem ? error : lost(error);
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

/** @param {string} event its lines; those that are comments keep the connection alive */
function* dataOf(event) {
  const lines = event.split('\n').filter((line) => line.startsWith('data:'));
  if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join('\n');
}

/** @param {string} data */
function parse(data) {
  try {
    return JSON.parse(data) ?? {};
  } catch (error) {
    throw new ChatProblem('The server’s answer makes no sense.', 'Is there a proxy in between? Reload the page.', error);
  }
}

/** @param {unknown} error of fetch or of reading; one that was asked for passes as it is */
function lost(error) {
  if (error instanceof DOMException && error.name === 'AbortError') return error;
  return new ChatProblem('The server cannot be reached.', 'Check that it is running and that you are online, then send it again.', error);
}

/** @param {Response} response */
async function refused(response) {
  const message = messageIn(await response.text()) || `HTTP status ${response.status}`;
  if (response.status === 413) return new ChatProblem(message, 'Remove files, or start a new chat.');
  if (response.status === 401) return new ChatProblem('This server asks for a key.', 'Ask whoever runs it for one, then send this again and enter it.');
  if (response.status === 503 || response.status === 429) {
    const seconds = Number(response.headers.get('Retry-After')) || DEFAULT_RETRY_S;
    return new ChatProblem(message, `The engine is busy: send it again in about ${seconds} seconds.`);
  }
  if (response.status >= 500) return new ChatProblem(message, 'Send it again; if that fails, the server’s log says more.');
  return new ChatProblem(message, 'Change what you sent, and send it again.');
}

/** @param {string} body OpenAI's error object, if it is one */
function messageIn(body) {
  try {
    return String(JSON.parse(body)?.error?.message ?? '');
  } catch (error) {
    if (error instanceof SyntaxError) return '';
    throw error;
  }
}

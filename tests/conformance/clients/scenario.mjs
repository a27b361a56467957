/* What every JavaScript client goes through, in Node and in a browser: as scenario.py.

   `way` is how a program tells and keeps things: `tell(line)`, `keep(name, text)` and
   `keepSound(name, bytes)`; `given` is what it was told: base, key, speech (PCM16), picture (a
   data URL). */

export const RATE_HZ = 24000;
export const BYTES_PER_MS = (RATE_HZ * 2) / 1000;
export const TOOL = 'look_up';
export const TOOL_RESULT = 'a very dark green';
export const INSTRUCTIONS = 'Be short.';
const TOOL_COMMAND = '/look_up {"key": "colour"}';
const FRAME_MS = 40;
const PATIENCE_MS = 20000;
const HEARD_BEFORE_MS = 1800;

export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** One answer of the agent, as far as this client learned of it. */
class Turn {
  itemId;
  text = '';
  pieces = [];
  receivedMs = 0;
  live = false; // its sound comes as a track that plays by itself
  clock = () => performance.now(); // of a live one, that of the track
  beganMs = null;
  ended = false;
  stoppedMs = -1;
  askedMs = -1;
  cutMs = -1;
  status = '';
  reason = '';

  constructor(itemId) {
    this.itemId = itemId;
  }

  get playedMs() {
    if (this.stoppedMs >= 0) return this.stoppedMs;
    const since = this.beganMs === null ? 0 : Math.floor(this.clock() - this.beganMs);
    return this.live ? since : Math.min(this.receivedMs, since);
  }

  get quiet() {
    if (this.stoppedMs >= 0) return true;
    return this.live ? this.ended : this.playedMs >= this.receivedMs;
  }

  hear(bytes) {
    if (this.stoppedMs >= 0) return;
    this.beganMs ??= this.clock();
    this.pieces.push(bytes);
    this.receivedMs += bytes.length / BYTES_PER_MS;
  }

  stop() {
    if (this.stoppedMs < 0) this.stoppedMs = Math.floor(this.playedMs);
  }

  facts() {
    return {
      text: this.text,
      received_ms: Math.floor(this.receivedMs),
      stopped_ms: this.stoppedMs,
      asked_ms: this.askedMs,
      cut_ms: this.cutMs,
      status: this.status,
      reason: this.reason,
    };
  }
}

/** Silence in real time, and what `say` puts into it: PCM16, 24 kHz, mono. */
export class Microphone {
  #waiting = new Uint8Array(0);
  #running = null;

  say(sound) {
    const joined = new Uint8Array(this.#waiting.length + sound.length);
    joined.set(this.#waiting);
    joined.set(sound, this.#waiting.length);
    this.#waiting = joined;
  }

  get speaking() {
    return this.#waiting.length > 0;
  }

  /** Hand a frame to `take` each 40 ms until `stop`. */
  start(take) {
    const size = FRAME_MS * BYTES_PER_MS;
    const began = performance.now();
    let count = 0;
    this.#running = setInterval(() => {
      while (count * FRAME_MS <= performance.now() - began) {
        const frame = new Uint8Array(size);
        frame.set(this.#waiting.subarray(0, size));
        this.#waiting = this.#waiting.slice(size);
        count += 1;
        take(frame);
      }
    }, FRAME_MS / 2);
  }

  stop() {
    clearInterval(this.#running);
  }
}

/** One third-party client; the programs say what each of its methods means for theirs. */
export class Client {
  given;
  microphone = new Microphone();
  turns = [];
  events = [];
  calls = [];
  faults = [];
  userTurns = 0;
  sessionId = '';
  #byItem = new Map();
  #byResponse = new Map();

  constructor(given) {
    this.given = given;
  }

  async retrieve() {
    return null;
  }

  /** How much sound of a track came so far: a server that gets no processor sends late. */
  soundedMs() {
    throw new Error('no track here');
  }

  soundOf(turn) {
    return joined(turn.pieces);
  }

  turnOf(itemId) {
    if (!this.#byItem.has(itemId)) {
      const turn = new Turn(itemId);
      this.#byItem.set(itemId, turn);
      this.turns.push(turn);
    }
    return this.#byItem.get(itemId);
  }

  /** One server event as it came off the wire. */
  notice(event) {
    this.events.push(event);
    const { type } = event;
    if (type === 'session.created') this.sessionId = event.session.id;
    if (type === 'input_audio_buffer.speech_started') this.stopLoudspeaker();
    if (type === 'input_audio_buffer.committed') this.userTurns += 1;
    if (type === 'response.output_item.added' && event.item.type === 'message') {
      this.#byResponse.set(event.response_id, this.turnOf(event.item.id));
    }
    if (type === 'response.output_audio.delta') {
      this.turnOf(event.item_id).hear(fromBase64(event.delta));
    }
    if (type === 'response.output_audio_transcript.delta') {
      this.turnOf(event.item_id).text += event.delta;
    }
    if (type === 'conversation.item.truncated') {
      this.turnOf(event.item_id).cutMs = event.audio_end_ms;
    }
    if (type === 'response.done') this.#done(event.response);
    // Clients cancel what may be over by the time that the server reads of it.
    if (type === 'error' && event.error.code !== 'response_cancel_not_active') {
      this.faults.push(JSON.stringify(event.error));
    }
    if (type.startsWith('output_audio_buffer.')) {
      this.#buffered(type.split('.')[1], this.#byResponse.get(event.response_id));
    }
  }

  /** The user speaks: whatever plays is stopped, as all these clients do. */
  stopLoudspeaker() {
    for (const turn of this.turns) {
      if (!turn.live && !(turn.status && turn.quiet)) turn.stop();
    }
  }

  #buffered(what, turn) {
    if (what === 'started') {
      turn.live = true;
      turn.clock = () => this.soundedMs();
      turn.beganMs = turn.clock();
    } else if (what === 'stopped') turn.ended = true;
    else turn.stop();
  }

  #done(response) {
    for (const item of response.output) {
      if (item.type === 'message') {
        const turn = this.turnOf(item.id);
        turn.status = response.status;
        turn.reason = response.status_details?.reason ?? '';
      }
    }
  }

  /** Poll: a client has no one place where all of its news arrive. */
  async until(met, what) {
    const due = performance.now() + PATIENCE_MS;
    for (;;) {
      const found = met();
      if (found) return found;
      if (performance.now() > due) throw new Error(`no ${what} within ${PATIENCE_MS} ms`);
      await sleep(20);
    }
  }

  /** The turn, heard to its end, that has `holds` in its words, asked for by `ask`. */
  async answer(ask, holds) {
    const known = this.turns.length;
    await ask();
    const fits = (turn) => turn.text.includes(holds) && turn.status;
    const turn = await this.until(() => this.turns.slice(known).find(fits), `answer: ${holds}`);
    await this.until(() => turn.quiet, 'end of the answer');
    return turn;
  }
}

const STEPS = {
  async connect(client) {
    const began = performance.now();
    await client.connect();
    const takenS = Math.round(performance.now() - began) / 1000;
    return { connect: { session: client.sessionId, taken_s: takenS } };
  },

  /** The server greets first: the user talks over it. */
  async interrupt(client) {
    await client.until(() => client.turns[0]?.playedMs > HEARD_BEFORE_MS, 'greeting');
    const greeting = client.turns[0];
    client.microphone.say(client.given.speech);
    await client.until(() => greeting.stoppedMs >= 0, 'stop of the loudspeaker');
    await client.until(() => greeting.status, 'end of the greeting');
    await client.until(() => greeting.cutMs >= 0, 'cut');
    return { interrupt: greeting.facts() };
  },

  /** What was said over it is answered: it comes back. */
  async answered(client, way) {
    await client.until(() => !client.microphone.speaking, "end of the user's speech");
    await client.until(() => client.userTurns, "user's turn");
    const fits = (turn) => turn.text.includes('You spoke') && turn.status;
    const turn = await client.until(() => client.turns.find(fits), 'answer');
    await client.until(() => turn.quiet, 'end of the answer');
    await way.keepSound('heard.wav', client.soundOf(turn));
    return { talk: { user_turns: client.userTurns }, answered: turn.facts() };
  },

  async tools(client) {
    const turn = await client.answer(() => client.typeText(TOOL_COMMAND), TOOL_RESULT);
    return { tools: { calls: client.calls, said: turn.text } };
  },

  async picture(client) {
    const turn = await client.answer(() => client.showPicture(client.given.picture), 'pixels');
    return { picture: { said: turn.text } };
  },

  async history(client) {
    const greeting = client.turns[0];
    const retrieved = await client.retrieve(greeting.itemId);
    return { history: { items: client.history(), retrieved, full: greeting.text } };
  },

  /** Leave and come back by the same object, or as its makers say. */
  async reconnect(client, way) {
    const before = client.sessionId;
    await client.close();
    await keepEvents(client, way);
    client.turns = [];
    await client.connect();
    await client.until(() => client.turns[0]?.playedMs, 'second greeting');
    return { reconnect: { before, after: client.sessionId } };
  },

  async close(client) {
    await client.close();
    return { close: { faults: client.faults } };
  },
};

let sessions = 0;

async function keepEvents(client, way) {
  const { events } = client;
  client.events = [];
  if (events.length) await way.keep(`events_${sessions++}.json`, JSON.stringify(events));
}

/** The steps of one call, in order; a step that fails is told, and the next one is tried. */
export async function journey(client, way) {
  for (const [feature, step] of Object.entries(STEPS)) {
    try {
      for (const [name, facts] of Object.entries(await step(client, way))) {
        await way.tell({ feature: name, facts });
      }
    } catch (error) {
      await way.tell({ feature, error: `${error?.stack ?? JSON.stringify(error)}` });
      if (feature === 'connect') break;
    }
  }
  await keepEvents(client, way);
}

/** Role and text of the items that `RealtimeSession` holds. */
export function itemsOf(history) {
  return history
    .filter((item) => item.type === 'message')
    .map((item) => ({
      role: item.role,
      text: item.content.map((part) => part.text ?? part.transcript ?? '').join(''),
    }));
}

export function joined(pieces) {
  const all = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  return all;
}

export function fromBase64(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

export function toBase64(bytes) {
  let text = '';
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

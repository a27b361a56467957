/* npm `openai`: `OpenAIRealtimeWS`. It speaks to wss:// alone. */

import OpenAI from 'openai';
import { OpenAIRealtimeWS } from 'openai/realtime/ws';

import { go } from './in_node.mjs';
import { Client, INSTRUCTIONS, TOOL, TOOL_RESULT, toBase64 } from './scenario.mjs';

class OpenAINode extends Client {
  #wire;

  async connect() {
    const openai = new OpenAI({ apiKey: this.given.key, baseURL: `${this.given.base}/v1` });
    this.#wire = new OpenAIRealtimeWS({ model: 'gpt-realtime' }, openai);
    this.#wire.on('error', (error) => {
      if (!error.error) this.faults.push(`${error}`); // the server's own come as events, too
    });
    this.#wire.on('event', (event) => this.#take(event));
    await new Promise((done, fail) => {
      this.#wire.socket.once('open', done);
      this.#wire.socket.once('error', fail);
    });
    const known = this.events.length;
    this.#wire.send({
      type: 'session.update',
      session: {
        type: 'realtime',
        instructions: INSTRUCTIONS,
        output_modalities: ['audio'],
        audio: {
          input: { turn_detection: { type: 'semantic_vad' }, noise_reduction: null },
          output: { voice: 'marin' },
        },
        tools: [{ type: 'function', name: TOOL, parameters: { type: 'object' } }],
      },
    });
    this.microphone.start((frame) => {
      this.#wire.send({ type: 'input_audio_buffer.append', audio: toBase64(frame) });
    });
    const updated = (event) => event.type === 'session.updated';
    await this.until(() => this.events.slice(known).some(updated), 'session.updated');
  }

  async close() {
    this.microphone.stop();
    const closed = new Promise((done) => this.#wire.socket.once('close', done));
    this.#wire.close();
    await closed;
  }

  /** The SDK keeps none: what it makes of the server's items. */
  history() {
    return this.items;
  }

  async retrieve(itemId) {
    const texts = [];
    for (const turn of this.turns) texts.push(await this.#words(turn.itemId));
    this.items = texts.map((text) => ({ role: 'assistant', text }));
    return this.#words(itemId);
  }

  async #words(itemId) {
    const known = this.events.length;
    this.#wire.send({ type: 'conversation.item.retrieve', item_id: itemId });
    const fits = (event) =>
      event.type === 'conversation.item.retrieved' && event.item.id === itemId;
    const told = await this.until(() => this.events.slice(known).find(fits), 'retrieved');
    return told.item.content.map((part) => part.transcript ?? '').join('');
  }

  typeText(text) {
    this.#ask({ type: 'input_text', text });
  }

  showPicture(url) {
    this.#ask({ type: 'input_image', image_url: url });
  }

  #ask(part) {
    const item = { type: 'message', role: 'user', content: [part] };
    this.#wire.send({ type: 'conversation.item.create', item });
    this.#wire.send({ type: 'response.create' });
  }

  #take(event) {
    const playing = this.turns.filter((turn) => turn.stoppedMs < 0);
    this.notice(event);
    for (const turn of playing) {
      if (turn.stoppedMs >= 0) this.#cut(turn);
    }
    if (event.type === 'response.done') this.#call(event.response.output);
  }

  /** Tell how much of what was stopped just now was heard, as the guide for WebSockets says. */
  #cut(turn) {
    turn.askedMs = turn.stoppedMs;
    const where = { item_id: turn.itemId, content_index: 0, audio_end_ms: turn.stoppedMs };
    this.#wire.send({ type: 'conversation.item.truncate', ...where });
  }

  #call(output) {
    const calls = output.filter((item) => item.type === 'function_call');
    for (const call of calls) {
      this.calls.push({ name: call.name, arguments: JSON.parse(call.arguments) });
      const item = { type: 'function_call_output', call_id: call.call_id, output: TOOL_RESULT };
      this.#wire.send({ type: 'conversation.item.create', item });
    }
    if (calls.length) this.#wire.send({ type: 'response.create' });
  }
}

await go((given) => new OpenAINode(given));

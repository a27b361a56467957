/* npm `@openai/agents-realtime` in Node: `RealtimeSession` over `OpenAIRealtimeWebSocket`. */

import { OpenAIRealtimeWebSocket } from '@openai/agents-realtime';

import { AgentsClient } from './agents_session.mjs';
import { go } from './in_node.mjs';

class AgentsWS extends AgentsClient {
  async connect() {
    const base = this.given.base.replace(/^http/, 'ws');
    const url = `${base}/v1/realtime?model=gpt-realtime`;
    const session = this.open(new OpenAIRealtimeWebSocket({ url }));
    session.on('audio_interrupted', () => this.stopLoudspeaker());
    const known = this.events.length;
    await session.connect({ apiKey: this.given.key, url });
    this.microphone.start((frame) => session.sendAudio(frame.buffer));
    await this.settled(known);
  }

  async close() {
    this.microphone.stop();
    this.session.close();
  }
}

await go((given) => new AgentsWS(given));

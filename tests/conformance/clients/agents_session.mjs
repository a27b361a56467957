/* npm `@openai/agents-realtime`: what its session does alike over WebSocket and WebRTC. */

import { RealtimeAgent, RealtimeSession, tool } from '@openai/agents-realtime';

import { Client, INSTRUCTIONS, itemsOf, TOOL, TOOL_RESULT } from './scenario.mjs';

export class AgentsClient extends Client {
  session;

  /** A session over `transport`, not connected yet. */
  open(transport) {
    const lookUp = tool({
      name: TOOL,
      description: 'Look something up.',
      strict: false,
      parameters: {
        type: 'object',
        properties: { key: { type: 'string' } },
        required: ['key'],
        additionalProperties: true,
      },
      execute: async (given) => {
        this.calls.push({ name: TOOL, arguments: given });
        return TOOL_RESULT;
      },
    });
    const agent = new RealtimeAgent({ name: 'Tester', instructions: INSTRUCTIONS, tools: [lookUp] });
    this.session = new RealtimeSession(agent, { transport, model: 'gpt-realtime' });
    this.session.on('transport_event', (event) => this.notice(event));
    this.session.on('error', ({ error }) => {
      if (error?.type !== 'error') this.faults.push(`${error?.stack ?? JSON.stringify(error)}`);
    });
    return this.session;
  }

  /** Until the server has taken the session's settings. */
  async settled(known) {
    const updated = (event) => event.type === 'session.updated';
    await this.until(() => this.events.slice(known).some(updated), 'session.updated');
  }

  history() {
    return itemsOf(this.session.history);
  }

  typeText(text) {
    this.session.sendMessage(text);
  }

  showPicture(url) {
    this.session.addImage(url);
  }
}

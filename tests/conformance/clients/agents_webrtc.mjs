/* npm `@openai/agents-realtime` in a browser: `RealtimeSession` over `OpenAIRealtimeWebRTC`.

   It calls twice: once with a microphone of ours, that speaks when it should, and once with the one
   that it asks the browser for, which reads a file. */

import { OpenAIRealtimeWebRTC } from '@openai/agents-realtime';

import { AgentsClient } from './agents_session.mjs';
import { Ear, go, MadeMicrophone, SoundMeter } from './in_browser.mjs';

class AgentsWebRTC extends AgentsClient {
  microphone = new MadeMicrophone();
  #ear = new Ear();
  #calls = 0;
  #meter;

  async connect() {
    const audioElement = document.querySelector('#voice');
    const options = { baseUrl: `${this.given.base}/v1/realtime/calls`, audioElement };
    if (!this.#calls) options.mediaStream = this.microphone.stream;
    this.#calls += 1;
    options.changePeerConnection = (peer) => {
      this.#meter = new SoundMeter(peer);
      return peer;
    };
    const session = this.open(new OpenAIRealtimeWebRTC(options));
    const known = this.events.length;
    await session.connect({ apiKey: await window.secret() });
    if (this.#calls === 1) this.#ear.listen(audioElement.srcObject);
    else await this.until(() => this.events.slice(known).some(isSpeech), 'the other microphone');
    await this.settled(known);
  }

  async close() {
    this.session.close();
  }

  soundedMs() {
    return this.#meter.ms;
  }

  soundOf() {
    return this.#ear.sound();
  }
}

const isSpeech = (event) => event.type === 'input_audio_buffer.speech_started';

await go((given) => new AgentsWebRTC(given));

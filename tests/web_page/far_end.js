/*
 * The server's half of a call, inside the page: answers the offer with a second peer connection,
 * so that signalling, media and events take the page's real path. Injected before the page loads;
 * `window.farEnd` is the test's hold on it.
 */
(() => {
  if (!navigator.mediaDevices) return; // about:blank
  const realFetch = window.fetch;
  const farEnd = {
    enabled: true, // off: the scripted server answers offers
    silent: false, // answer without candidates, so that no connection ever comes about
    broken: false, // no request gets through
    gate: Promise.resolve(), // an answer waits for it
    received: [], // client events
    offers: [], // SDP texts
    sessions: [], // settings that came with an offer, or null
    wanted: [], // constraints of getUserMedia
    streams: [], // what the page got from getUserMedia
    screens: [], // and from getDisplayMedia
    near: null, // the page's own peer connection
    pc: null,
    ear: null,
    events: null,
    send: (event) => farEnd.events.send(JSON.stringify(event)),
    close: () => farEnd.pc.close(),
    /* Make the page believe that its connection is in this state. */
    pretend: (state) => {
      Object.defineProperty(farEnd.near, 'connectionState', { configurable: true, get: () => state });
      farEnd.near.dispatchEvent(new Event('connectionstatechange'));
    },
    pictures: async () => {
      const reports = [...(await farEnd.pc.getStats()).values()];
      return reports.find((each) => each.type === 'inbound-rtp' && each.kind === 'video')?.framesReceived ?? 0;
    },
    soundEnergy: async () => {
      const reports = [...(await farEnd.pc.getStats()).values()];
      return reports.find((each) => each.type === 'inbound-rtp' && each.kind === 'audio')?.totalAudioEnergy ?? 0;
    },
  };
  window.farEnd = farEnd;

  const RealPeerConnection = window.RTCPeerConnection;
  window.RTCPeerConnection = function (...configuration) {
    farEnd.near = new RealPeerConnection(...configuration);
    return farEnd.near;
  };
  const realGetUserMedia = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async (wanted) => {
    farEnd.wanted.push(wanted);
    const stream = await realGetUserMedia(wanted);
    farEnd.streams.push(stream);
    return stream;
  };

  const realGetDisplayMedia = navigator.mediaDevices.getDisplayMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getDisplayMedia = async (wanted) => {
    const stream = await realGetDisplayMedia(wanted);
    farEnd.screens.push(stream);
    return stream;
  };

  const tone = () => {
    const context = new AudioContext();
    const oscillator = context.createOscillator();
    const gain = new GainNode(context, { gain: 0.2 });
    const out = context.createMediaStreamDestination();
    oscillator.connect(gain).connect(out);
    oscillator.start();
    return out.stream;
  };

  const gathered = (pc) => new Promise((resolve) => {
    if (pc.iceGatheringState === 'complete') resolve();
    else pc.onicegatheringstatechange = () => pc.iceGatheringState === 'complete' && resolve();
  });

  const answer = async (sdp) => {
    farEnd.offers.push(sdp);
    const pc = new RealPeerConnection();
    farEnd.pc = pc;
    pc.ondatachannel = ({ channel }) => {
      farEnd.events = channel;
      channel.onmessage = ({ data }) => farEnd.received.push(JSON.parse(data));
      channel.onopen = () => farEnd.send({ type: 'session.created', session: { id: 'sess_1' } });
    };
    pc.ontrack = ({ track }) => {
      // What nobody listens to is never decoded, and then has no energy either.
      if (track.kind !== 'audio') return;
      farEnd.ear = new Audio();
      farEnd.ear.srcObject = new MediaStream([track]);
      farEnd.ear.play();
    };
    await pc.setRemoteDescription({ type: 'offer', sdp });
    const stream = tone();
    for (const track of stream.getTracks()) pc.addTrack(track, stream);
    await pc.setLocalDescription();
    await gathered(pc);
    const text = pc.localDescription.sdp;
    return farEnd.silent ? text.replaceAll(/a=candidate.*\r\n/g, '') : text;
  };

  window.fetch = async (url, request = {}) => {
    const path = new URL(url, location.href).pathname;
    if (farEnd.broken) throw new TypeError('Failed to fetch');
    if (!farEnd.enabled || request.method !== 'POST' || !path.endsWith('/v1/realtime/calls')) return realFetch(url, request);
    const form = request.body instanceof FormData ? request.body : null;
    if (!form && request.headers['Content-Type'] !== 'application/sdp') throw new Error('an offer is application/sdp');
    farEnd.sessions.push(form && JSON.parse(form.get('session')));
    const body = await answer(form ? form.get('sdp') : request.body);
    await farEnd.gate;
    return new Response(body, { status: 201, headers: { Location: '/v1/realtime/calls/rtc_test' } });
  };
})();

/*
 * The chat's far end, inside the page: requests are kept, answers are what the test says. Injected
 * before the page loads; `window.chatEnd` is the test's hold on it.
 */
(() => {
  const realFetch = window.fetch;
  const encoder = new TextEncoder();
  const chatEnd = {
    asked: [], // request bodies
    aborted: 0,
    refusal: null, // [status, headers, body] instead of an answer
    broken: false, // the server cannot be reached
    stream: null,
    send: (data) => chatEnd.stream.enqueue(encoder.encode(data)),
    event: (chunk) => chatEnd.send(`data: ${JSON.stringify(chunk)}\n\n`),
    delta: (delta) => chatEnd.event({ choices: [{ delta, finish_reason: null }] }),
    finish: (reason = 'stop') => {
      chatEnd.event({ choices: [{ delta: {}, finish_reason: reason }] });
      chatEnd.send('data: [DONE]\n\n');
      chatEnd.stream.close();
    },
    cut: () => chatEnd.stream.close(),
  };
  window.chatEnd = chatEnd;

  window.fetch = async (url, request = {}) => {
    if (!new URL(url, location.href).pathname.endsWith('/v1/chat/completions')) return realFetch(url, request);
    if (chatEnd.broken) throw new TypeError('Failed to fetch');
    chatEnd.asked.push(JSON.parse(request.body));
    if (chatEnd.refusal) {
      const [status, headers, body] = chatEnd.refusal;
      return new Response(JSON.stringify(body), { status, headers });
    }
    const body = new ReadableStream({ start: (controller) => (chatEnd.stream = controller) });
    request.signal.addEventListener('abort', () => {
      chatEnd.aborted += 1;
      chatEnd.stream.error(new DOMException('given up', 'AbortError'));
    });
    return new Response(body, { status: 200, headers: { 'Content-Type': 'text/event-stream' } });
  };
})();

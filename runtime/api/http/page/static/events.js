// Reads server-sent events from a stream of bytes.

/** The data of each event as it comes. Pieces may be cut anywhere. */
export async function* readEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const frames = (waiting + value).split("\n\n");
      waiting = frames.pop();
      for (const frame of frames) {
        const data = dataOf(frame);
        if (data) yield data;
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined); // The stream may have failed; its error was thrown already.
  }
}

function dataOf(frame) {
  const lines = frame.split("\n").filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
}

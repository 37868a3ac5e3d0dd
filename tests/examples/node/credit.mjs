// A client of CreditPiggy's daemon, and a job runner that has each job credited. It needs nothing but Node.
import net from "node:net";

const FORBIDDEN = /[,=\x00-\x1f\x7f-\x9f]/; // there is no escaping

/** A command that was certainly not taken: it may be sent again. */
export class NotTaken extends Error {}

/** No answer came: the command may have been taken all the same, and must not be sent again. */
export class InDoubt extends Error {}

/** Send one command to the daemon at the path of a UNIX socket. */
export async function send(endpoint, kind, fields) {
  const pairs = Object.entries(fields);
  if (pairs.flat().some((part) => FORBIDDEN.test(part))) {
    throw new NotTaken(`a name or a value has a comma, "=" or a control character: ${pairs}`);
  }
  const frame = [kind, ...pairs.map(([name, value]) => `${name}=${value}`)].join(",");
  if (Buffer.byteLength(frame) > 1500) {
    throw new NotTaken(`more than 1,500 bytes, which the daemon would cut: ${frame}`);
  }
  const socket = net.createConnection(endpoint);
  socket.setTimeout(10_000, () => socket.destroy(new Error("no answer in 10 seconds")));
  let connected = false;
  let answer = "";
  let reason = "closed without an answer";
  socket.on("connect", () => {
    connected = true;
    socket.write(frame); // in one piece
  });
  socket.on("data", (data) => (answer += data));
  socket.on("error", (error) => (reason = error.message));
  await new Promise((resolve) => socket.on("close", resolve)); // the daemon closes after its answer
  if (answer === "ER" || !connected) {
    throw new NotTaken(`${frame}: ${answer || reason}`);
  }
  if (answer !== "OK") {
    throw new InDoubt(`${frame}: ${reason}`);
  }
}

/** Do a job's work, and have the machine credited if it succeeds; the work returns a number of events. */
export async function runJob(endpoint, job, machine, work) {
  await send(endpoint, "alloc", { slot: job, min: 1, max: 10 });
  let events;
  try {
    events = await work();
  } catch (error) {
    await send(endpoint, "discard", { slot: job, reason: error.name });
    throw error;
  }
  await send(endpoint, "counters", { slot: job, "job/success": 1, "job/events": events });
  await send(endpoint, "claim", { slot: job, machine, credits: Math.ceil(events / 100) });
}

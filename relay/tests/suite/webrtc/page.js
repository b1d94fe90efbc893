// One side of a call over a relay. The test hands out jobs, carries what the two sides tell each other, and gets a result from each.
"use strict";

const side = new URLSearchParams(location.search).get("side");
const other = side === "offerer" ? "answerer" : "offerer";

// Posts leave one after the other, so that a candidate never overtakes the description it belongs to.
let posted = Promise.resolve();
function post(to, message) {
  const body = JSON.stringify({ from: side, ...message });
  posted = posted.then(() => fetch(`/mail/${to}`, { method: "POST", body }));
}

function note(text) {
  post("test", { kind: "note", text: String(text) });
}

async function take() {
  for (;;) {
    // 204: nothing has come yet.
    const answer = await fetch(`/mail/${side}`, { cache: "no-store" });
    if (answer.status === 200) return answer.json();
  }
}

addEventListener("error", (event) => note(`error: ${event.message}`));
addEventListener("unhandledrejection", (event) => note(`rejection: ${event.reason}`));

// What the message of this number holds: the number, then bytes that follow from it.
function message(number, length) {
  const bytes = new Uint8Array(length).map((_, index) => (number * 31 + index) & 255);
  new DataView(bytes.buffer).setUint32(0, number);
  return bytes;
}

function equal(left, right) {
  return left.length === right.length && left.every((byte, index) => byte === right[index]);
}

class Call {
  constructor(job, camera) {
    this.job = job;
    this.candidates = [];
    this.received = 0;
    this.wrong = 0;
    this.framesAtFirst = null;
    const server = { urls: job.url, username: job.username, credential: job.credential };
    this.connection = new RTCPeerConnection({ iceServers: [server], iceTransportPolicy: "relay" });
    this.connection.onconnectionstatechange = () => note(`connection: ${this.connection.connectionState}`);
    this.connection.onicecandidateerror = (event) => note(`candidate: ${event.url} ${event.errorCode} ${event.errorText}`);
    this.connection.onicecandidate = (event) => this.handleCandidate(event.candidate);
    // Ordered and without a limit to retransmissions, on both sides from the start.
    this.channel = this.connection.createDataChannel("data", { negotiated: true, id: 0 });
    this.channel.binaryType = "arraybuffer";
    this.channel.onmessage = (event) => this.handleMessage(new Uint8Array(event.data));
    this.channel.onopen = () => this.sendAll();
    camera.getTracks().forEach((track) => this.connection.addTrack(track, camera));
    this.finished = this.finish();
  }

  // The end of candidates is an event without one, and one that is empty.
  handleCandidate(candidate) {
    if (!candidate?.candidate) return;
    this.candidates.push({ type: candidate.type, text: candidate.candidate });
    post(other, { kind: "candidate", candidate });
  }

  handleMessage(bytes) {
    if (!equal(bytes, message(this.received, this.job.messageBytes))) this.wrong += 1;
    this.received += 1;
  }

  sendAll() {
    for (let number = 0; number < this.job.messages; number += 1) {
      this.channel.send(message(number, this.job.messageBytes));
    }
  }

  async offer() {
    await this.connection.setLocalDescription();
    post(other, { kind: "description", description: this.connection.localDescription });
  }

  async handle(mail) {
    if (mail.kind === "candidate") return this.connection.addIceCandidate(mail.candidate);
    await this.connection.setRemoteDescription(mail.description);
    if (mail.description.type === "offer") await this.offer();
  }

  // Asks until all has come; the test decides when that takes too long.
  async finish() {
    for (;;) {
      const stats = [...(await this.connection.getStats()).values()];
      const frames = stats.find((stat) => stat.type === "inbound-rtp" && stat.kind === "video")?.framesDecoded ?? 0;
      if (frames > 0) this.framesAtFirst ??= frames;
      const over = this.received >= this.job.messages && frames > this.job.frames;
      if (over && this.connection.iceGatheringState === "complete") return this.result(stats, frames);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  result(stats, frames) {
    const byId = (id) => stats.find((stat) => stat.id === id);
    const pair = byId(stats.find((stat) => stat.type === "transport").selectedCandidatePairId);
    const end = ({ candidateType, relayProtocol, address, port }) => ({ candidateType, relayProtocol, address, port });
    const video = stats.find((stat) => stat.type === "inbound-rtp" && stat.kind === "video");
    return {
      candidates: this.candidates,
      locals: stats.filter((stat) => stat.type === "local-candidate").map(end),
      local: end(byId(pair.localCandidateId)),
      remote: end(byId(pair.remoteCandidateId)),
      received: this.received,
      wrong: this.wrong,
      framesAtFirst: this.framesAtFirst,
      frames,
      width: video.frameWidth,
    };
  }
}

async function main() {
  // The browser opens one page by itself. The other one shares nothing with it.
  if (side === "offerer") open("page.html?side=answerer", "_blank", "noopener");
  // The browser's own picture: flags stand for a camera and for the consent to it.
  const camera = await navigator.mediaDevices.getUserMedia({ video: { width: 320, height: 240, frameRate: 30 } });
  let call = null;
  for (;;) {
    const mail = await take();
    if (mail.kind === "job") {
      call = new Call(mail, camera);
      call.finished.then((result) => post("test", { kind: "result", result }));
      if (side === "offerer") await call.offer();
    } else if (mail.kind === "end") {
      call.connection.close();
      post("test", { kind: "ended" });
    } else {
      await call.handle(mail);
    }
  }
}

main().catch((error) => note(`main: ${error.stack}`));

// Run: cpsim exec --rule settled-once -- node --test credit.test.mjs
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { InDoubt, NotTaken, runJob, send } from "./credit.mjs";

/** A request to the control API: returns the answer. */
async function control(method, request, query = {}, body = undefined) {
  const url = `${process.env.CREDITPIGGY_CONTROL}/${request}?${new URLSearchParams(query)}`;
  const response = await fetch(url, { method, body: body && JSON.stringify(body) });
  const answer = await response.json();
  assert.ok(response.ok, answer.message);
  return answer;
}

/** A test with a project and a daemon of its own, so that tests may run at the same time. */
function withProject(name, body) {
  it(name, async () => {
    const project = await control("POST", "projects/add");
    const expect = async (what, query) => {
      const found = await control("GET", `expect/${what}`, { project: project.project, within_s: 5, ...query });
      assert.ok(found.holds, found.message);
    };
    await body(project, expect);
    await expect("rule", { rule: "no-slot-leaked" });
  });
}

describe("credit", { concurrency: true }, () => {
  withProject("a job that succeeds is credited", async ({ unix }, expect) => {
    await runJob(unix, "job-1", "worker-7", async () => 1000);
    const terms = { state: "claimed", machine: "worker-7", credits: 10, counters: "job/success=1,job/events=1000" };
    await expect("slot", { slot: "job-1", ...terms });
  });

  withProject("a job that fails is discarded", async ({ unix }, expect) => {
    const failing = async () => {
      throw new RangeError("disk full");
    };
    await assert.rejects(runJob(unix, "job-1", "worker-7", failing), RangeError);
    await expect("slot", { slot: "job-1", state: "discarded", reason: "RangeError" });
  });

  withProject("a job that cannot be allocated does not run", async ({ project, unix }) => {
    await control("POST", "faults/add", {}, [`daemon.error:project=${project},kind=alloc,nth=1`]);
    await assert.rejects(runJob(unix, "job-1", "worker-7", assert.fail), NotTaken);
  });

  withProject("a lost answer is told apart from a refusal", async ({ project, unix }, expect) => {
    await send(unix, "alloc", { slot: "job-1", credits: 5 });
    await control("POST", "faults/add", {}, [`daemon.lose-reply:project=${project},kind=claim,nth=1`]);
    await assert.rejects(send(unix, "claim", { slot: "job-1", machine: "worker-7" }), InDoubt);
    await expect("slot", { slot: "job-1", state: "claimed" }); // it was taken
  });

  withProject("nothing is sent that would forge a field", async ({ unix }) => {
    await assert.rejects(send(unix, "alloc", { slot: "job-1,credits=9999" }), NotTaken);
    await assert.rejects(send(unix, "meta", { slot: "job-1", note: "x".repeat(1500) }), NotTaken);
  });
});

// Sends one task with the npm package celery-node, whose installation is the second argument, and prints its id, or its result.
const [call, installed] = [JSON.parse(process.argv[2]), process.argv[3]];
const { createClient } = require(`${installed}/node_modules/celery-node`);

async function main() {
  const client = createClient(call.broker, call.backend, "celery");
  await client.isReady();
  const result = call.wait
    ? client.asyncResult(call.wait)
    : client.sendTask(call.task, call.args, call.kwargs, call.id);
  await new Promise((resolve) => setTimeout(resolve, 50)); // it publishes behind a promise that it does not return
  console.log(JSON.stringify(call.wait ? await result.get(20000, 50) : result.taskId));
  await client.disconnect();
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });

from batchyard import Client, webhooks

client = Client()
client.submit("minilm", "a sentence", webhook="https://example.com/done")
endpoint = client.webhooks.create("https://example.com/all", events=["job.failed", "bulk.finished"])


def receive(body, headers):
    event = webhooks.verify(body, headers, endpoint.secret)
    print(event["type"], event["data"]["id"])

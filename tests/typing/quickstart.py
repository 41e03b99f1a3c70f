from batchyard import Client

with Client() as client:
    job = client.submit("minilm", "a sentence to embed")  # durable when this returns
    print(job.id, job.result(timeout=60).shape)  # a NumPy array, if NumPy is installed

    texts = (f"sentence number {n}" for n in range(1_000))  # any iterable, in bounded memory
    for result in client.map("minilm", texts, key="my-run"):  # as they complete; ordered=True for input order
        print(result.index, result.value[:3])  # the same key goes on after an interruption

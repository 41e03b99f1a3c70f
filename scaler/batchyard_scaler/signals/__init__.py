"""What a decision looks at: read from the store, or learned by watching it. O(queues + consumers), never O(jobs)."""

-- One job a request, a different input each time; prints one line of JSON at the end.
local counter = 0
local thread_number = 0
function setup(thread)
  thread:set("offset", thread_number * 100000000)
  thread_number = thread_number + 1
end
function request()
  counter = counter + 1
  local n = offset + counter
  local body = string.format('{"input":{"n":%d,"text":"%010d-batchyard-no-op-benchmark-payload-of-a-hundred-bytes-xxxxxxxxxxxxxxx"}}', n, n)
  return wrk.format("POST", "/v1/models/noop/jobs", {["Content-Type"] = "application/json"}, body)
end
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('{"requests":%d,"seconds":%f,"p50_ms":%f,"p99_ms":%f,"not_2xx":%d,"socket_errors":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end

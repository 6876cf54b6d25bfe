-- wrk: heartbeats of many accounts in turn. Arguments: file of "token session device" lines, first seq.
-- Everything but position and seq is built beforehand, and their digits never change in number, so that wrk costs
-- little and a request has one size. The last two lines printed are for the caller.
local requests, turn, seq, position = {}, 0, 0, 0

function init(args)
  seq = tonumber(args[2])
  for line in io.lines(args[1]) do
    local token, session, device = string.match(line, '^(%S+) (%S+) (%S+)$')
    local body = '{"session":"' .. session .. '","device":"' .. device .. '","content":"title-00001","kind":"vod","position":%d.5,' ..
      '"state":"playing","seq":%d,"quality":{"bitrate":4200000}}'
    local head = 'POST /v1/heartbeats HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer ' .. token ..
      '\r\nContent-Type: application/json\r\nContent-Length: ' .. #string.format(body, 1000, seq) .. '\r\n\r\n'
    requests[#requests + 1] = head .. body
  end
end

function request()
  turn = turn + 1
  if turn > #requests then
    turn, seq, position = 1, seq + 1, (position + 10) % 9000
  end
  return string.format(requests[turn], 1000 + position, seq)
end

function done(summary, latency)
  local e = summary.errors
  print(string.format('RESULT %d %d %d %d %d %d %d %d', summary.requests, summary.duration, latency:percentile(99), e.status,
    e.connect, e.read, e.write, e.timeout))
  print(string.format('P50 %d', latency:percentile(50)))
end

-- wrk: CMCD reports of many players in turn. Arguments: file of "token session device" lines, first sn, reports a request.
-- A request has one size, and everything but sn, ts and pt is built beforehand. The last line printed is for the caller.
local requests, turn, sn, lines = {}, 0, 0, 1

function init(args)
  sn, lines = tonumber(args[2]), tonumber(args[3])
  local line = 'bl=(6000),br=(4200),cid="title-00001",e=t,ltc=2500,mtp=(87100),pt=%d,sf=h,sid="%s",sn=%d,st=v,sta=p,ts=%d,v=2\n'
  for known in io.lines(args[1]) do
    local token, session, device = string.match(known, '^(%S+) (%S+) (%S+)$')
    local head = 'POST /v1/cmcd?token=' .. token .. '&kind=vod&device=' .. device .. '&device_type=web HTTP/1.1\r\nHost: 127.0.0.1\r\n' ..
      'User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36\r\n' ..
      'Content-Type: application/cmcd\r\nContent-Length: '
    requests[#requests + 1] = {head, line, session, #string.format(line, 1000000, session, sn, 1700000000000) * lines}
  end
end

function request()
  turn = turn + 1
  if turn > #requests then turn, sn = 1, sn + lines end
  local known, body = requests[turn], {}
  for n = 0, lines - 1 do
    body[n + 1] = string.format(known[2], 1000000 + (sn + n) % 1000000, known[3], sn + n, 1700000000000 + (sn + n) * 10000)
  end
  return known[1] .. known[4] .. '\r\n\r\n' .. table.concat(body)
end

function done(summary, latency)
  local e = summary.errors
  print(string.format('RESULT %d %d %d %d %d %d %d %d', summary.requests, summary.duration, latency:percentile(99), e.status,
    e.connect, e.read, e.write, e.timeout))
end

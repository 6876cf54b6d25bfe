-- wrk: one GET, again and again. Arguments: path, token. The last line printed is for the caller.
local text

function init(args)
  text = 'GET ' .. args[1] .. ' HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer ' .. args[2] .. '\r\n\r\n'
end

function request()
  return text
end

function done(summary, latency)
  local e = summary.errors
  print(string.format('RESULT %d %d %d %d %d %d %d %d', summary.requests, summary.duration, latency:percentile(99), e.status,
    e.connect, e.read, e.write, e.timeout))
end

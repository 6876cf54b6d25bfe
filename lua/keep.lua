-- keep: appends an entry to what is kept for somebody to look at, within bounds: the oldest entries make room. Log Redis.
-- KEYS[1] kept   stream; of an entry's fields `n` is its size (bytes), `account` whose it is, if anybody's
-- KEYS[2] sizes  hash: account -> bytes of its entries; '' -> of all
-- ARGV[1] most     entries
-- ARGV[2] bytes    of all
-- ARGV[3] share    bytes of one account, beyond which nothing of its is kept; '' if nobody's share is bounded
-- ARGV[4] account  whose the entry is, or ''
-- ARGV[5...] fields  in pairs: name, value
-- RETURNS 1; 0 if the account's share is used up

local function change(account, by)
  for _, name in ipairs(account == '' and {''} or {'', account}) do
    if redis.call('HINCRBY', KEYS[2], name, by) <= 0 then redis.call('HDEL', KEYS[2], name) end
  end
end

local size, account = 0, ARGV[4]
for i = 5, #ARGV do size = size + #ARGV[i] end
if ARGV[3] ~= '' and (tonumber(redis.call('HGET', KEYS[2], account)) or 0) + size > tonumber(ARGV[3]) then return 0 end

local length, bytes = redis.call('XLEN', KEYS[1]), tonumber(redis.call('HGET', KEYS[2], '')) or 0
while length > 0 and (length >= tonumber(ARGV[1]) or bytes + size > tonumber(ARGV[2])) do
  local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  local n, whose = 0, ''
  for i = 1, #oldest[2], 2 do
    if oldest[2][i] == 'n' then n = tonumber(oldest[2][i + 1]) elseif oldest[2][i] == 'account' then whose = oldest[2][i + 1] end
  end
  redis.call('XDEL', KEYS[1], oldest[1])
  if n > 0 then change(whose, -n) end
  length, bytes = length - 1, bytes - n
end
redis.call('XADD', KEYS[1], '*', 'n', size, unpack(ARGV, 5))
change(account, size)
return 1

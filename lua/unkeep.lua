-- unkeep: takes entries away from what lua/keep.lua keeps.
-- KEYS[1] kept   stream
-- KEYS[2] sizes  hash: account -> bytes of its entries; '' -> of all
-- ARGV[1...] ids
-- RETURNS how many there were

local gone = 0
for _, id in ipairs(ARGV) do
  local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
  if entry then
    local n, account = 0, ''
    for i = 1, #entry[2], 2 do
      if entry[2][i] == 'n' then n = tonumber(entry[2][i + 1]) elseif entry[2][i] == 'account' then account = entry[2][i + 1] end
    end
    gone = gone + redis.call('XDEL', KEYS[1], id)
    for _, name in ipairs(account == '' and {''} or {'', account}) do
      if n > 0 and redis.call('HINCRBY', KEYS[2], name, -n) <= 0 then redis.call('HDEL', KEYS[2], name) end
    end
  end
end
return gone

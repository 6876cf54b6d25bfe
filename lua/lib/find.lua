-- find: the text of one session's record (lib/record.lua) in an account's set, or nil. Looks at those whose leases expire
-- last, down to the place `last` ('-1' is all of them).
local function find(key, session, last)
  local name = session .. '\n'
  local texts = redis.call('ZREVRANGE', key, '0', last)
  for i = 1, #texts do
    if string.find(texts[i], name, 1, true) == 1 then return texts[i] end
  end
end

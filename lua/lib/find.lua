-- find: the text of one session's record (lib/record.lua) in an account's set, or nil; and all texts it has read: those in the
-- places `first` to `last` by when the lease expires, latest first ('0', '-1' are all).
local function find(key, session, first, last)
  local name = session .. '\n'
  local texts = redis.call('ZREVRANGE', key, first, last)
  for i = 1, #texts do
    if string.find(texts[i], name, 1, true) == 1 then return texts[i], texts end
  end
  return nil, texts
end

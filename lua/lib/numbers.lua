-- numbers: marks that are known already. Digests are in sets; of the numbers of a series a bit each, in fields of 512, in hashes
-- beside the sets.
-- Expects the locals today and yesterday (names of the sets) and seen (digest -> true).
local SERIES, books, marked = ':n', {}, {}
local function book(mark)
  local a, b, c, d = string.byte(mark, 9, 12)
  local number = ((a * 256 + b) * 256 + c) * 256 + d
  local name = string.sub(mark, 1, 8) .. string.format('%d', math.floor(number / 512))
  if not books[name] then
    local old, new = redis.call('HGET', yesterday .. SERIES, name), redis.call('HGET', today .. SERIES, name)
    books[name] = {old = {string.byte(old or '', 1, -1)}, new = {string.byte(new or '', 1, -1)}}
  end
  return books[name], name, math.floor(number % 512 / 8) + 1, 2 ^ (number % 8)
end
local function is_set(bytes, place, bit) return math.floor((bytes[place] or 0) / bit) % 2 == 1 end
local function known(mark)
  if #mark ~= 12 then return seen[mark] end
  local b, _, place, bit = book(mark)
  return is_set(b.old, place, bit) or is_set(b.new, place, bit)
end
local function remember(mark)
  if #mark ~= 12 then
    seen[mark] = true
    return mark
  end
  local b, name, place, bit = book(mark)
  for i = #b.new + 1, place do b.new[i] = 0 end
  b.new[place], marked[name] = b.new[place] + bit, b.new
end

-- What came of numbers, remembered for so many ms.
local function write_numbers(ms)
  if not next(marked) then return end
  for name, bytes in pairs(marked) do redis.call('HSET', today .. SERIES, name, string.char(unpack(bytes))) end
  redis.call('PEXPIRE', today .. SERIES, ms)
end

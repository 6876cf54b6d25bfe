-- progress: what a heartbeat says about playback: pause, position, time watched, completion.

-- Paused with an advancing position is playing.
local function moving(ask, me, position)
  return me and me.content == ask.content and me.state == 'a' and position and me.position and position > me.position + 1000
end

-- Paused keeps its slot for a while (lib/account.lua).
local function pause(me, paused, position, at)
  if paused then
    if me.paused == 0 then
      me.paused = now
      emit('pause', me, {position = position and position / 1000})
    end
    me.ttl = math.max(0, me.paused + tune.paused_end - at)
  elseif me.paused > 0 then
    me.paused, me.still = 0, at
    emit('resume', me, {position = position and position / 1000})
  end
end

-- Beats, but its position has not moved for too long. A pause has its own time, and nobody knows about live without one.
local function stuck(me, at, state, position)
  if state == 'a' or not position or position ~= me.position or me.paused > 0 then return false end
  return at - (me.still > 0 and me.still or me.seen) >= tune.no_progress
end

-- Time watched grows by min(position moved, time passed x rate): seeks and pauses do not count. Without a
-- position (live), by the time spent playing; and up to a seek, too, since its first word may tell where it leads.
-- A heartbeat that was sent again arrives up to 4 s late and makes the next interval seem as much shorter: what moved
-- further than time passed, but no more than that explains, was played. A player that starts anew without saying where has
-- played on for some part of the first interval that brought nothing.
local RETRIED = 5000
local function advance(me, at, state, position, seq, run, rate, completed)
  local elapsed = math.max(0, at - me.seen)
  local moved = 0
  if state == 'k' and me.state == 'p' then
    moved = elapsed
  elseif state == 's' and not position then
    moved = me.state == 'p' and math.min(elapsed, me.interval) / 2 or 0
  elseif position then
    moved = position - (me.position or position)
  elseif me.state == 'p' then
    moved = elapsed
  end
  if moved > elapsed * rate + RETRIED then moved = elapsed * rate end
  if moved > 0 then me.watched = math.floor(me.watched + moved) end
  if state ~= 'a' and position and position == me.position then
    if me.still == 0 then me.still = me.seen end
  else
    me.still = 0
  end
  if completed then me.completed = 1 end
  me.position, me.furthest = position, math.max(me.furthest, position or 0)
  me.state, me.seq, me.run, me.seen = state, seq, run, math.max(me.seen, at)
end

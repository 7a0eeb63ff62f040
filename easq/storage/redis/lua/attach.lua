-- flags: allow-oom; after: context entries groups filters consumers retention failures dispatch stream
-- Adds a connection of a consumer under a number that was never used before, and closes an older connection of the
-- consumer. Items that are held for this user go to the new connection first.
--
-- ARGV[4] group  [5] user  [6] window  [7] '1': auto-commit  [8] highest index that is not wanted; '-1': all present ones
-- [9] tags  [10] process, or ''
--
-- Answers `ok` and the number, or `ended` when the stream has ended and nothing is left for the group.

local S = stream.begin()
if not S then
  return {'gone'}
end
local name, user, process = ARGV[4], ARGV[5], ARGV[10]
if stream.is_through(S, groups.get(S, name)) then
  return stream.finish(S, 'ended')
end
local G = groups.make(S, name)
local m = consumers.get(G, user)
if m and m.session ~= 0 then
  local older = consumers.sessions(G)[m.session]
  stream.leave(G, older, process ~= '' and older.process == process)
  m = consumers.get(G, user)
end
local before = m and m.filter
local after = ARGV[8] == '-1' and id_of(S.last) or id_of(tonumber(ARGV[8]))
local V = consumers.view(G, after, ARGV[9])
set(S, 'number', S.number + 1)
local s = {
  number = S.number, view = V.number, window = tonumber(ARGV[6]), out = 0, served = S.served, stopped = false,
  alone = '', user = user, server = SERVER, index = m and m.index or 0, process = process, redelivers = false,
  changed = true,
}
consumers.sessions(G)[s.number] = s
call('HSET', S.p .. 'who', s.number, name)
call('SADD', S.p .. 'of:' .. SERVER, s.number)
call('ZADD', S.p .. 'servers', NOW + CONF.lease, SERVER)
consumers.store(G, {
  user = user, session = s.number, window = s.window, auto = ARGV[7] == '1', filter = ARGV[9], index = s.index,
  active = NOW, left_pending = false, place = m and m.place or s.number,
})
G.connected, G.changed = G.connected + 1, true
retention.take_filter(G, ARGV[9], before)
failures.count_replaced(G, s)
dispatch.redeliver_held(G, s, V)
dispatch.group(G)
return stream.finish(S, 'ok', s.number)

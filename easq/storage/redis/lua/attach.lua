-- flags: allow-oom; after: stream entries groups members handout rules
-- A connection of the consumer is there, under a number never given before; its older one is closed. What was kept for
-- this user goes to it first.
--
-- ARGV[4] group  [5] user  [6] window  [7] '1': auto-commit  [8] highest index not wanted, '-1': all there is  [9] tags
-- [10] process, or ''
-- `ok` number, or `ended`

local S = rules.begin()
if not S then
  return {'gone'}
end
local name, user, process = ARGV[4], ARGV[5], ARGV[10]
if rules.is_through(S, groups.get(S, name)) then
  return rules.finish(S, 'ended')
end
local G = groups.make(S, name)
local m = members.get(G, user)
if m and m.session ~= 0 then
  local older = members.sessions(G)[m.session]
  rules.leave(G, older, process ~= '' and older.process == process)
  m = members.get(G, user)
end
local before = m and m.filter
local after = ARGV[8] == '-1' and id_of(S.last) or id_of(tonumber(ARGV[8]))
local V = members.view(G, after, ARGV[9])
set(S, 'number', S.number + 1)
local s = {
  number = S.number, view = V.number, window = tonumber(ARGV[6]), out = 0, served = S.served, stopped = false,
  alone = '', user = user, server = SERVER, index = m and m.index or 0, process = process, keeps = false, changed = true,
}
members.sessions(G)[s.number] = s
call('HSET', S.p .. 'who', s.number, name)
call('SADD', S.p .. 'of:' .. SERVER, s.number)
call('ZADD', S.p .. 'servers', NOW + CONF.lease, SERVER)
members.keep(G, {
  user = user, session = s.number, window = s.window, auto = ARGV[7] == '1', filter = ARGV[9], index = s.index,
  active = NOW, left_pending = false, place = m and m.place or s.number,
})
G.connected, G.changed = G.connected + 1, true
rules.take_filter(G, ARGV[9], before)
rules.lose_to(G, s)
handout.give_back(G, s, V)
handout.dispatch(G)
return rules.finish(S, 'ok', s.number)
